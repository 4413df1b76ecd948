// The stages of a rollout, and at which of them it is. Pure functions.

import { duration, percent } from "../format.js";

const ENDED = ["Aborting", "Degraded"];

/** The stages by name, the place of the one it is at, and whether it was stopped there. */
export function listStages(rollout) {
  const { phase, num_steps } = rollout;
  const isBack = phase === "RollingBack" || rollout.reason === "RolledBack";
  const isStopped = ENDED.includes(phase);
  const isShadowed = phase === "Shadowing" || rollout.events.some((event) => event.to === "Shadowing");
  const names = ["Pending", ...(isShadowed ? ["Shadow"] : []), ...rollout.steps.map(nameStep), "Approval", "Baking", "Healthy"];
  if (isBack) names.push(isStopped ? "Rolled back" : "Rolling back");
  const at = isBack ? names.length - 1 : findPlace(isStopped ? phaseBeforeEnd(rollout) : phase, rollout.step, num_steps, Number(isShadowed));
  if (isStopped && !isBack) names[at] += ` · ${rollout.reason}`;
  else if (at > Number(isShadowed) && at <= num_steps + Number(isShadowed)) names[at] += ` · ${percent(rollout.weight)} now`;
  return { names, at, isStopped };
}

const nameStep = ({ weight, hold_s }, i) => `Step ${i + 1}: ${percent(weight)}, ${hold_s === null ? "until a verdict" : duration(hold_s)}`;

/** Where it was when it was stopped, by the audit trail. */
function phaseBeforeEnd({ events }) {
  return [...events].reverse().find((event) => ENDED.includes(event.to) && !ENDED.includes(event.from))?.from;
}

function findPlace(phase, step, num_steps, numBefore) {
  if (phase === "Pending") return 0;
  if (phase === "Shadowing") return 1;
  const inSteps = 1 + Math.min(Math.max(step, 0), num_steps - 1);
  return numBefore + ({ WaitingPromotion: num_steps + 1, Promoting: num_steps + 1, Baking: num_steps + 2, Healthy: num_steps + 3 }[phase] ?? inSteps);
}
