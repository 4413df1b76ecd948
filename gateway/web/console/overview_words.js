// The loop at a glance, in words: what is going on, what happens next and who can change it, what needs a look. Pure functions.

import { count, duration, evidence, percent, phaseName, unitName, why } from "../format.js";
import { describeNow } from "../learning_words.js";
import { actionLabel } from "./rollout_actions.js";

const ON_TRIAL = ["Pending", "Shadowing", "Progressing", "Paused", "WaitingPromotion", "Promoting", "RollingBack"];

/** What is going on, in a sentence. */
export function describeLoop({ rollout, stable }) {
  if (!stable) return "No checkpoint serves yet.";
  if (!rollout) return `${stable.id} serves everyone.`;
  const { phase, checkpoint } = rollout;
  if (phase === "WaitingPromotion") return `${checkpoint} waits for an approval.`;
  if (phase === "Baking") return `${checkpoint} was promoted, and may still go back.`;
  if (phase === "Progressing") return `${checkpoint} is on trial with ${percent(rollout.weight)} of users.`;
  if (ON_TRIAL.includes(phase)) return `${checkpoint} is on trial: ${phaseName(phase).toLowerCase()}.`;
  return `${checkpoint} is being taken away.`;
}

/** What happens next: {what, when, who} each, and where that is decided: href. */
export function listNext({ rollout, asking }, learning, session, now) {
  const rows = [rollout ? nextOfRollout(rollout, session, now) : {
    what: "The next checkpoint that passes its tests goes on trial by itself.", when: "after a round",
    who: "An operator may start one by hand.", href: "/console/checkpoints",
  }];
  rows.push(nextOfLearning(learning));
  rows.push({
    what: `Answers of a pair are picked ${asking.problem ? "at random" : `by reward model ${asking.reward_version ?? "–"}`}.`, when: "with each ask",
    who: "Settings: gateway.asking.",
  });
  return rows;
}

function nextOfRollout(rollout, session, now) {
  const { phase, next_move_at, approve_at, step, steps, evidence: seen } = rollout;
  const in_ = (at) => (at ? `in ${duration(at - now)}` : "");
  const who = describeWho(rollout, session);
  const href = "/console/rollout";
  const goesOn = { href, what: `Weight ${percent(rollout.weight)} until a verdict: ${evidence(seen.e)} of ${evidence(seen.threshold)}.`, when: `${count(seen.users)} of ${count(seen.min_users)} ${unitName(seen.unit, seen.min_users)}`, who };
  if (phase === "Progressing" && next_move_at && steps[step + 1]) return { href, what: `The canary’s weight goes to ${percent(steps[step + 1].weight)}.`, when: in_(next_move_at), who };
  if (phase === "WaitingPromotion") return { href, what: "The canary is promoted.", when: approve_at ? in_(approve_at) : "when an operator approves", who };
  if (phase === "Paused") return { href, what: `Nothing moves: ${why(rollout)}.`, when: "until it is resumed, or its cause ends", who };
  if (phase === "Baking") return { href, what: `${rollout.stable} is let go for good.`, when: in_(next_move_at), who };
  if (phase === "Progressing") return goesOn;
  return { href, what: `${phaseName(phase)}.`, when: in_(next_move_at) || "now", who };
}

function describeWho(rollout, { is_admin }) {
  const may = rollout.actions.map((name) => actionLabel(name).toLowerCase());
  const others = !is_admin && ["Progressing", "Paused", "WaitingPromotion"].includes(rollout.phase) ? "; an admin may promote it past the gates" : "";
  return `The controller, by the rules. ${may.length ? `You may: ${may.join(", ")}` : "Nobody may stop it now"}${others}.`;
}

function nextOfLearning({ problem, trainer }) {
  const href = "/console/learning";
  if (!trainer) return { href, what: problem, when: "", who: "Whoever runs the trainer." };
  const { seconds_left: left, reason } = trainer.round;
  return { href, what: describeNow({ problem, trainer, trial: null }), when: left ? `about ${duration(left)} left` : reason, who: "Asked for on the trainer’s machine: prefloop round run." };
}

/** What needs a look, one sentence each, the worst first. */
export function listProblems({ controller, engines, counters, asking, rollout }, { problem, trainer }) {
  const found = [];
  if (controller?.problem) found.push(`The rollout controller fails: ${controller.problem}.`);
  for (const engine of engines) {
    if (!engine.up) found.push(`Engine ${engine.url} does not answer.`);
    else if (engine.is_hung) found.push(`Engine ${engine.url} hangs.`);
    else if (engine.breaker !== "closed") found.push(`Engine ${engine.url} is let rest: its breaker is ${engine.breaker}.`);
  }
  if (rollout?.phase === "WaitingPromotion" && !rollout.approve_at) found.push("A canary waits for an approval.");
  if (rollout?.phase === "Paused") found.push(`The rollout is paused: ${why(rollout)}.`);
  for (const wire of rollout?.tripwires ?? []) if (wire.status === "tripped") found.push(`Tripwire ${wire.name}: ${wire.text}.`);
  for (const slice of rollout?.slices ?? []) if (slice.status === "fail") found.push(`${slice.name}=${slice.value} prefers stable.`);
  for (const row of rollout?.guardrails ?? []) if (row.status === "fail" && !row.waived) found.push(`Guardrail ${row.name} fails.`);
  if (problem) found.push(problem);
  if (trainer?.consumer_error) found.push(`The trainer reads no choices: ${trainer.consumer_error}.`);
  if (trainer?.registry_error) found.push(`The trainer cannot register checkpoints: ${trainer.registry_error}.`);
  if (trainer?.reward.refused) found.push(`The newest reward model is not used: ${trainer.reward.refused}.`);
  if (trainer?.dead_letters) found.push(`${count(trainer.dead_letters)} records could not be read: prefloop feedback dead-letters.`);
  if (trainer?.quarantined) found.push(`${count(trainer.quarantined)} choices could not be learnt from: prefloop feedback quarantine.`);
  for (const sentence of trainer?.drift ?? []) found.push(`Drift: ${sentence}`);
  if (counters.outbox_pending > 1000) found.push(`${count(counters.outbox_pending)} choices wait for the log.`);
  if (asking?.problem && asking.scorer_url) found.push(`${asking.problem.charAt(0).toUpperCase()}${asking.problem.slice(1)}.`);
  return found;
}
