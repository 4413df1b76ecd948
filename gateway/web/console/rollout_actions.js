// What an operator may do with a rollout: a button for each action that the gateway lists, and its confirmation.
// Which actions there are in which phase, the gateway says; here is how each is asked. Sends nothing itself.

import { byId, make } from "../dom.js";
import { count, evidence, signedPercent, unitName } from "../format.js";
import { askConfirmation, isAsking, showConfirmationError } from "./confirm.js";

/** By the names of the API and the command line. note: "required", "optional" or none; facts: what is decided on. */
const ACTIONS = {
  approve: {
    label: "Approve", tone: "primary", title: "Promote this checkpoint?", facts: true,
    text: (rollout) => `${rollout.checkpoint} will serve everyone; the old one keeps a small share while it bakes.`,
    // What the operator saw is what is approved: the gateway refuses if the decision has changed since.
    body: ({ generation, decision_digest }) => ({ generation, decision_digest }),
  },
  pause: { label: "Pause", title: "Pause this rollout?", note: "optional", text: () => "The weight stays; guardrails still end it." },
  resume: {
    label: "Resume", title: "Resume this rollout?",
    text: (rollout) => `It goes on where it was. What it was paused for is accepted: ${rollout.reason_text}.`,
  },
  skip: {
    label: "Skip step", title: "Skip this step?",
    text: ({ step, steps }) => `The canary’s weight goes from ${share(steps[step])} to ${share(steps[step + 1])} now.`,
  },
  promote: {
    label: "Promote", tone: "danger", title: "Promote past the gates?", note: "required", facts: true,
    text: (rollout) => `${rollout.checkpoint} will serve everyone, whatever the gates say. You answer for it, in writing.`,
  },
  rollback: {
    label: "Roll back", tone: "danger", title: "Roll back?", note: "optional",
    text: (rollout) => `${rollout.stable} serves everyone again, without a trial; ${rollout.checkpoint} does not start again by itself. `
      + (rollout.phase === "Baking" ? "In force at once." : "In force as soon as it is loaded and proven; a rollout that is on is aborted."),
  },
  retry: {
    label: "Retry", title: "Put it on trial again?",
    text: (rollout) => `A new rollout of ${rollout.checkpoint} against ${rollout.stable} goes on with the evidence and the users of before.`,
  },
  abort: {
    label: "Abort", tone: "danger", title: "Abort this rollout?", note: "optional",
    text: (rollout) => (rollout.phase === "RollingBack"
      ? `The roll back is given up: ${rollout.checkpoint} goes on serving.`
      : `${rollout.stable} serves everyone. ${rollout.checkpoint} will not be tried again by itself.`),
  },
};

/** What the action is called on its button. */
export const actionLabel = (name) => ACTIONS[name]?.label ?? name;

const share = (step) => (step ? `${Math.round(100 * step.weight)}%` : "the next one");

let shown = null; // what the open confirmation is about

/** Make a button for each action, hidden until the gateway allows it; onClick gets the action's name. */
export function makeActions(group, onClick) {
  group.replaceChildren(...Object.entries(ACTIONS).map(([name, { label, tone }]) => {
    const button = make("button", { class: `button ${tone ?? ""}`, type: "button", "data-action": name, hidden: true }, `${label}…`);
    button.addEventListener("click", () => onClick(name));
    return button;
  }));
}

/** Show the actions that are allowed. If the focused one is not any more, the focus goes to what stands beside it. */
export function showActions(group, allowed) {
  const focused = group.contains(document.activeElement) ? document.activeElement : null;
  for (const button of group.children) button.hidden = !allowed.includes(button.dataset.action);
  group.hidden = allowed.every((name) => !(name in ACTIONS));
  if (focused?.hidden) (group.querySelector(":not([hidden])") ?? byId("main")).focus();
}

/** Ask about an action on a rollout. send(name, body, showError) resolves to whether it was taken. */
export function confirmAction(name, rollout, send) {
  const { label, tone, title, text, note, facts, body = () => ({}) } = ACTIONS[name];
  const { id, generation, decision_digest } = rollout;
  shown = facts ? { id, generation, decision_digest } : null;
  const question = { title, text: text(rollout), label, tone, note, facts: facts ? listFacts(rollout) : [] };
  askConfirmation(question, (written, showError) => send(name, { ...body(rollout), ...written }, showError));
}

/** Say so in an open confirmation if what it shows is not what stands now. */
export function checkConfirmation(rollout) {
  if (!shown || !isAsking()) return;
  const isSame = rollout?.id === shown.id && rollout.generation === shown.generation && rollout.decision_digest === shown.decision_digest;
  if (!isSame) showConfirmationError("The decision has changed since you opened this: cancel, and look again.");
}

/** The decision: what it rests on, and the digest by which the gateway knows it again. */
function listFacts({ verdict_sentence, evidence: seen, guardrails, generation, decision_digest }) {
  const open = guardrails.filter((row) => row.needed && row.status !== "pass").map((row) => `${row.name}: ${row.status}`);
  return [
    ["Verdict", verdict_sentence],
    ["Evidence", `${evidence(seen.e)} of ${evidence(seen.threshold)}, ${count(seen.users)} ${unitName(seen.unit, seen.users)}`],
    ["Net win rate", `${signedPercent(seen.net_win_rate)} (${signedPercent(seen.ci_low)} to ${signedPercent(seen.ci_high)})`],
    ["Guardrails", open.join(", ") || "all pass"],
    ["Decision", `${decision_digest.slice(0, 12) || "none yet"}, generation ${generation}`],
  ];
}
