// Paints the console from what the gateway says. Reads nothing and decides nothing.

import { byId, make, makeSvg, replaceChanged, setText } from "../dom.js";
import { clock, count, duration, evidence, percent, phaseName, signedPercent, toneOf, unitName, why } from "../format.js";
import { showActions } from "./rollout_actions.js";
import { showGuardrails } from "./rollout_guardrails.js";
import { showTrail } from "./rollout_lists.js";
import { drawEvidence, drawNet } from "./rollout_plot.js";
import { showPositions, showSlices } from "./rollout_slices.js";
import { listStages } from "./rollout_stages.js";
import { showTripwires } from "./rollout_tripwires.js";

/** Show the whole status; `now` is the gateway's clock in epoch seconds. */
export function showStatus(status, now) {
  const { rollout } = status;
  setText(byId("preset"), `Preset: ${rollout?.preset || status.preset || "default"}`);
  showControllerProblem(status.controller?.problem);
  showVerdict(status, rollout);
  showRamp(rollout);
  showCountdown(rollout, now);
  showActions(byId("actions"), rollout?.actions ?? []);
  byId("rollout-parts").hidden = !rollout;
  if (rollout) {
    const { unit } = rollout.evidence;
    showTiles(rollout, rollout.evidence);
    drawNet(byId("net-plot"), rollout.series, { startedAt: rollout.created_at, delta: rollout.evidence.delta, unit });
    drawEvidence(byId("e-plot"), rollout.series, { startedAt: rollout.created_at, threshold: rollout.evidence.threshold, unit });
    showGuardrails(rollout.guardrails, unit);
    showSlices(rollout.slices, unit);
    showPositions(rollout.evidence);
    showTripwires(rollout.tripwires, unit);
    showTrail(rollout.events);
  }
  setText(byId("asking"), describeAsking(status.asking));
  showCounters(status);
}

function showControllerProblem(problem) {
  const notice = byId("controller-problem");
  notice.hidden = !problem;
  setText(notice, problem ? `The rollout controller fails: ${problem}` : "");
}

function showVerdict(status, rollout) {
  const phase = byId("phase");
  setText(phase, rollout ? phaseName(rollout.phase) : "No rollout");
  phase.className = `pill ${toneOf(rollout?.phase)}`;
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
  const { names, at, isStopped } = listStages(rollout);
  const items = names.map((name, i) => {
    const current = i === at;
    return make("li", { class: isStopped && current ? "stopped" : i < at ? "done" : "", "aria-current": current && !isStopped ? "step" : null }, name);
  });
  replaceChanged(ramp, items);
}

/** What happens next and when; called more often than the rest. */
export function showCountdown(rollout, now) {
  const parts = [];
  if (rollout?.phase === "WaitingPromotion") {
    parts.push(rollout.approve_at ? `Approves itself in ${duration(rollout.approve_at - now)} unless you decide` : "Waits for your approval");
  } else if (rollout && !rollout.finished_at) {
    if (rollout.shadow) parts.push(`Shadowed: ${count(rollout.shadow.answers)} of ${count(rollout.shadow.min_answers)} answers seen, none of them served`);
    if (rollout.phase === "Paused") parts.push(`Paused – ${why(rollout)}`);
    else if (rollout.next_move_at) parts.push(`Next move in ${duration(rollout.next_move_at - now)}`);
    else if (rollout.phase === "RollingBack") parts.push(`${rollout.stable} is being loaded`);
    else if (rollout.phase === "Progressing") parts.push("Stays here until a verdict");
  } else if (rollout?.finished_at) parts.push(`Ended ${clock(rollout.finished_at)} after ${duration(rollout.finished_at - rollout.created_at)}`);
  if (rollout && !rollout.finished_at) parts.push(`running for ${duration(now - rollout.created_at)}`);
  setText(byId("next-move"), parts.join(" · "));
}

function showTiles(rollout, seen) {
  setText(byId("e-value"), evidence(seen.e));
  setText(byId("e-of"), `of ${evidence(seen.threshold)}`);
  byId("e-meter").value = Math.max(0, Math.min(1, Math.log(Math.max(seen.e, 1)) / Math.log(seen.threshold)));
  setText(byId("fragility"), describeFragility(seen));
  setText(byId("e-worse"), `That it is worse: ${evidence(seen.e_inferior)} of ${evidence(seen.threshold)}`);

  setText(byId("net"), seen.users ? signedPercent(seen.net_win_rate) : "–");
  setText(byId("interval"), seen.users ? `${signedPercent(seen.ci_low)} to ${signedPercent(seen.ci_high)}` : `no ${unitName(seen.unit, 1)} yet`);
  showVotes(seen);

  const byComparison = seen.unit === "comparison";
  setText(byId("users-heading"), byComparison ? "Comparisons" : "Users and votes");
  byId("judged-by").hidden = !byComparison;
  setText(byId("users"), count(seen.users));
  setText(byId("users-of"), `of ${count(seen.min_users)} needed, ${count(seen.max_users)} at most`);
  byId("users-meter").max = seen.min_users || 1;
  byId("users-meter").value = Math.min(seen.users, seen.min_users);
  setText(byId("votes"), [
    byComparison ? `${count(seen.votes)} choices` : `${count(seen.votes)} votes, top user ${percent(seen.top_user_share)}`,
    seen.waiting ? `${count(seen.waiting)} ${unitName(seen.unit, seen.waiting)} waiting to enter` : "",
  ].filter(Boolean).join(", "));

  const whose = rollout.weight_of === "old" ? "the old checkpoint" : "the canary";
  setText(byId("weight-of"), rollout.weight_of === "old" ? "Old checkpoint’s weight" : "Canary weight");
  byId("weight-meter").setAttribute("aria-label", `Share of users that ${whose} serves`);
  setText(byId("weight"), percent(rollout.weight));
  setText(byId("step"), `step ${Math.min(rollout.step + 1, rollout.num_steps)} of ${rollout.num_steps}`);
  byId("weight-meter").value = rollout.weight;
  setText(byId("duel-share"), `${percent(rollout.duel_share)} of users may compare both`);
}

/** How many would have to vanish until the evidence is short of its line. */
function describeFragility({ e, threshold, fragility, unit }) {
  if (e < threshold || !fragility) return "";
  return `Fragility: without the ${count(fragility)} ${unitName(unit, fragility)} that like it most it would be below ${evidence(threshold)}`;
}

/** How the two answers of a comparison are picked, where it is no duel. */
function describeAsking(asking) {
  if (!asking) return "";
  if (asking.problem) return `${asking.problem.charAt(0).toUpperCase()}${asking.problem.slice(1)}.`;
  const shown = Object.entries(asking.num_by_share).map(([share, number]) => `${count(number)} ${share}`);
  return `Asks are picked by reward model ${asking.reward_version ?? "–"}${shown.length ? `: ${shown.join(", ")}` : ""}.`;
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
