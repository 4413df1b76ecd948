// Paints the console from what the gateway says. Reads nothing and decides nothing but which buttons make sense.

import { make, makeSvg, setText } from "./dom.js";
import { clock, count, duration, evidence, percent, phaseName, signedPercent } from "./format.js";
import { drawEvidence, drawNet } from "./plot.js";

export const byId = (id) => document.getElementById(id);

const TONE = {
  Pending: "", Progressing: "go", Paused: "wait", WaitingPromotion: "wait", Promoting: "go", Baking: "go",
  Healthy: "good", Aborting: "bad", Degraded: "bad", Inconclusive: "",
};
const ABORTABLE = ["Pending", "Progressing", "Paused", "WaitingPromotion", "Promoting", "Baking"];

/** Show the whole status; `now` is the gateway's clock in epoch seconds. */
export function showStatus(status, now) {
  const { rollout } = status;
  setText(byId("preset"), `Preset: ${rollout?.preset || status.preset || "default"}`);
  showControllerProblem(status.controller?.problem);
  showVerdict(status, rollout);
  showRamp(rollout);
  showCountdown(rollout, now);
  enableActions(rollout);
  byId("rollout-parts").hidden = !rollout;
  if (rollout) {
    showTiles(rollout, rollout.evidence);
    drawNet(byId("net-plot"), rollout.series, { startedAt: rollout.created_at, delta: rollout.evidence.delta });
    drawEvidence(byId("e-plot"), rollout.series, { startedAt: rollout.created_at, threshold: rollout.evidence.threshold });
    showGuardrails(rollout.guardrails);
    showTrail(rollout.events);
  }
  showCounters(status);
}

/** The code of a reason, with what an operator wrote. */
const why = ({ reason, note }) => (note ? `${reason}: ${note}` : reason);

function showControllerProblem(problem) {
  const notice = byId("controller-problem");
  notice.hidden = !problem;
  setText(notice, problem ? `The rollout controller fails: ${problem}` : "");
}

function showVerdict(status, rollout) {
  const phase = byId("phase");
  setText(phase, rollout ? phaseName(rollout.phase) : "No rollout");
  phase.className = `pill ${TONE[rollout?.phase] ?? ""}`;
  setText(byId("analysis"), rollout?.analysis ? `Analysis: ${rollout.analysis}` : "");
  const stable = status.stable?.id;
  const calm = stable ? "Stable serves everyone. The next checkpoint starts a rollout by itself." : "Waiting for the first checkpoint.";
  setText(byId("verdict"), rollout?.verdict_sentence || calm);
  const trial = rollout ? (rollout.aa ? `A/A: stable’s own weights on trial as ${rollout.checkpoint}` : `Canary ${rollout.checkpoint}`) : "";
  const base = rollout?.stable || stable;
  setText(byId("lineage"), [trial, base ? `${trial ? "against stable" : "Stable"} ${base}` : "", `policy ${status.policy}`].filter(Boolean).join(" · "));
}

function showRamp(rollout) {
  const ramp = byId("ramp");
  ramp.hidden = !rollout;
  if (!rollout) return;
  const steps = Array.from({ length: rollout.num_steps }, (_, i) => `Step ${i + 1}`);
  const stages = ["Pending", ...steps, "Approval", "Baking", "Healthy"];
  const at = stagePosition(rollout);
  const ended = ["Aborting", "Degraded"].includes(rollout.phase);
  stages[at] += ended ? ` · ${rollout.reason}` : at > 0 && at <= rollout.num_steps ? ` · ${percent(rollout.weight)}` : "";
  ramp.replaceChildren(...stages.map((name, i) => {
    const current = i === at;
    return make("li", { class: ended && current ? "stopped" : i < at ? "done" : "", "aria-current": current && !ended ? "step" : null }, name);
  }));
}

function stagePosition({ phase, step, num_steps }) {
  const inSteps = 1 + Math.min(Math.max(step, 0), num_steps - 1);
  return { Pending: 0, WaitingPromotion: num_steps + 1, Promoting: num_steps + 1, Baking: num_steps + 2, Healthy: num_steps + 3 }[phase] ?? inSteps;
}

/** What happens next and when; called more often than the rest. */
export function showCountdown(rollout, now) {
  const parts = [];
  if (rollout?.phase === "WaitingPromotion") {
    parts.push(rollout.approve_at ? `Approves itself in ${duration(rollout.approve_at - now)} unless you decide` : "Waits for your approval");
  } else if (rollout && !rollout.finished_at) {
    if (rollout.phase === "Paused") parts.push(`Paused: ${why(rollout)}`);
    else if (rollout.next_move_at) parts.push(`Next move in ${duration(rollout.next_move_at - now)}`);
    else if (rollout.phase === "Progressing") parts.push("Stays here until a verdict");
  } else if (rollout?.finished_at) parts.push(`Ended ${clock(rollout.finished_at)} after ${duration(rollout.finished_at - rollout.created_at)}`);
  if (rollout && !rollout.finished_at) parts.push(`running for ${duration(now - rollout.created_at)}`);
  setText(byId("next-move"), parts.join(" · "));
}

function enableActions(rollout) {
  const phase = rollout?.phase;
  byId("actions").hidden = !ABORTABLE.includes(phase);
  byId("approve").disabled = phase !== "WaitingPromotion";
  byId("approve").title = phase === "WaitingPromotion" ? "" : "Possible once every gate has passed";
  byId("abort").disabled = !ABORTABLE.includes(phase);
  byId("pause").hidden = phase === "Paused";
  byId("pause").disabled = !["Progressing", "WaitingPromotion"].includes(phase);
  byId("resume").hidden = phase !== "Paused";
}

function showTiles(rollout, seen) {
  setText(byId("e-value"), evidence(seen.e));
  setText(byId("e-of"), `of ${evidence(seen.threshold)}`);
  byId("e-meter").value = Math.max(0, Math.min(1, Math.log(Math.max(seen.e, 1)) / Math.log(seen.threshold)));
  setText(byId("e-worse"), `That it is worse: ${evidence(seen.e_inferior)} of ${evidence(seen.threshold)}`);

  setText(byId("net"), seen.users ? signedPercent(seen.net_win_rate) : "–");
  setText(byId("interval"), seen.users ? `${signedPercent(seen.ci_low)} to ${signedPercent(seen.ci_high)}` : `no ${seen.unit} yet`);
  showVotes(seen);

  const byComparison = seen.unit === "comparison";
  setText(byId("users-heading"), byComparison ? "Comparisons" : "Users and votes");
  byId("judged-by").hidden = !byComparison;
  setText(byId("users"), count(seen.users));
  setText(byId("users-of"), `of ${count(seen.min_users)} needed, ${count(seen.max_users)} at most`);
  byId("users-meter").max = seen.min_users || 1;
  byId("users-meter").value = Math.min(seen.users, seen.min_users);
  setText(byId("votes"), byComparison ? `${count(seen.votes)} choices` : `${count(seen.votes)} votes, top user ${percent(seen.top_user_share)}`);

  const whose = rollout.weight_of === "old" ? "the old checkpoint" : "the canary";
  setText(byId("weight-of"), rollout.weight_of === "old" ? "Old checkpoint’s weight" : "Canary weight");
  byId("weight-meter").setAttribute("aria-label", `Share of users that ${whose} serves`);
  setText(byId("weight"), percent(rollout.weight));
  setText(byId("step"), `step ${Math.min(rollout.step + 1, rollout.num_steps)} of ${rollout.num_steps}`);
  byId("weight-meter").value = rollout.weight;
  setText(byId("duel-share"), `${percent(rollout.duel_share)} of users may compare both`);
}

function showVotes({ wins, losses, ties, both_bad }) {
  const total = Math.max(1, wins + losses + ties + both_bad);
  let from = 0;
  const bar = byId("votes-bar");
  bar.replaceChildren(...[["wins", wins], ["ties", ties + both_bad], ["losses", losses]].map(([name, number]) => {
    const width = (100 * number) / total;
    const part = makeSvg("rect", { class: name, x: from, y: 0, width, height: 4 });
    from += width;
    return part;
  }));
  const text = `${count(wins)} won, ${count(ties)} tied, ${count(losses)} lost, ${count(both_bad)} both bad`;
  bar.setAttribute("aria-label", text);
  setText(byId("votes-split"), text);
}

const GUARDRAIL_TONE = { pass: "good", fail: "bad" };

function showGuardrails(guardrails) {
  const rows = guardrails.map((row) => make("tr", {},
    make("td", {}, row.name),
    make("td", {}, make("span", { class: `pill ${GUARDRAIL_TONE[row.status] ?? ""}` }, row.status),
      row.missing ? make("span", { class: "note" }, `${count(row.missing)} more clean users`) : null),
    make("td", { class: "number" }, percent(row.canary, 1)),
    make("td", { class: "number" }, percent(row.stable, 1)),
    make("td", { class: "number" }, `${evidence(row.e)} of ${evidence(row.threshold)}`)));
  byId("guardrails").replaceChildren(...orEmpty(rows, 5, "No guardrail has seen a request yet."));
}

function showTrail(events) {
  const items = [...events].reverse().map((event) => make("li", {},
    make("time", { datetime: new Date(event.at * 1000).toISOString() }, clock(event.at)),
    make("div", {}, `${event.from && event.from !== event.to ? `${phaseName(event.from)} → ` : ""}${phaseName(event.to)} `, make("span", { class: "muted" }, `by ${event.actor}`),
      event.reason ? make("span", { class: "note" }, why(event)) : null)));
  byId("trail").replaceChildren(...(items.length ? items : [make("li", { class: "empty-row" }, "Nothing has happened yet.")]));
}

export function showCheckpoints(checkpoints) {
  const rows = [...checkpoints].sort((a, b) => b.number - a.number).map((row) => make("tr", {},
    make("td", {}, make("code", {}, row.id), row.parent ? make("span", { class: "note" }, `from ${row.parent}`) : null),
    make("td", {}, make("span", { class: `pill ${{ stable: "good", canary: "go" }[row.status] ?? ""}` }, row.status)),
    make("td", {}, clock(row.created_at))));
  byId("checkpoints").replaceChildren(...orEmpty(rows, 3, "No checkpoint yet."));
}

/** Show the rollouts that ended, in the order given. */
export function showPastRollouts(rollouts) {
  const rows = rollouts.map((row) => make("tr", {},
    make("td", {}, make("code", {}, row.checkpoint), row.aa ? make("span", { class: "note" }, "A/A") : null),
    make("td", {}, make("span", { class: `pill ${TONE[row.reason === "Inconclusive" ? "Inconclusive" : row.phase] ?? ""}` }, phaseName(row.phase)),
      row.reason ? make("span", { class: "note" }, why(row)) : null),
    make("td", { class: "number" }, count(row.evidence?.users)),
    make("td", { class: "number" }, row.evidence?.users ? signedPercent(row.evidence.net_win_rate) : "–"),
    make("td", {}, clock(row.finished_at))));
  byId("rollouts").replaceChildren(...orEmpty(rows, 5, "No rollout has ended yet."));
}

function orEmpty(rows, columns, text) {
  return rows.length ? rows : [make("tr", {}, make("td", { class: "empty-row", colspan: columns }, text))];
}

function showCounters({ counters = {}, swap, engines = [] }) {
  const parts = [
    `${count(counters.requests)} requests`, `${count(counters.failed_requests)} failed`, `${count(counters.comparisons)} comparisons`,
    `${count(counters.choices)} choices`, `${count(counters.outbox_pending)} waiting for the log`,
  ];
  if (swap?.last_swap_s) parts.push(`last swap ${swap.last_swap_s.toFixed(2)} s`);
  for (const engine of engines) parts.push(`engine ${engine.url} ${engine.up ? "up" : "down"}`);
  const footer = byId("counters");
  if (footer.textContent !== parts.join("")) footer.replaceChildren(...parts.map((text) => make("span", {}, text)));
}
