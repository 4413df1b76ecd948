// The guardrails' rows: status, what the sensor saw, how many users are missing, and what a breach does.

import { byId, make, replaceChanged } from "../dom.js";
import { count, evidence, percent, unitName } from "../format.js";
import { orEmpty } from "./table.js";

const TONE = { pass: "good", fail: "bad", blind: "wait" };
const ON_BREACH = { roll_back: "rolls back", pause: "pauses", warn: "warns" };

/** Show every guardrail; unit: what evidence is counted in. */
export function showGuardrails(guardrails, unit) {
  const rows = guardrails.map((row) => make("tr", { "data-guardrail": row.name },
    make("th", { scope: "row" }, row.name, note(`Sensor: ${row.sensor}. ${describeSeen(row, unit)}`)),
    make("td", {}, make("span", { class: `pill ${TONE[row.status] ?? ""}` }, row.status), note(describeMissing(row, unit))),
    make("td", {}, ON_BREACH[row.action] ?? row.action, note(row.waived ? "accepted by an operator" : "")),
    make("td", { class: "number" }, describeCanary(row)),
    make("td", { class: "number" }, percent(row.stable, 1)),
    make("td", { class: "number" }, `${evidence(row.e)} of ${evidence(row.threshold)}`)));
  replaceChanged(byId("guardrails"), orEmpty(rows, 6, "No guardrail has seen a request yet."));
}

const note = (text) => (text ? make("span", { class: "note" }, text) : null);

/** A rate; of the divergence, nats a token with their interval, and what they must be below. */
function describeCanary({ canary, low, high, margin }) {
  if (margin == null) return percent(canary, 1);
  if (canary === null) return "–";
  const interval = low === null ? "" : `${low.toFixed(2)} to ${high.toFixed(2)}, `;
  return make("span", {}, `${canary.toFixed(2)} nats`, note(`${interval}margin ${margin}`));
}

/** The two checks of the split see users, every other sensor answers. */
const describeSeen = ({ name, seen }, unit) => (["sample ratio", "display order"].includes(name)
  ? `${count(seen)} ${unitName(unit, seen)} seen.`
  : `${count(seen)} ${seen === 1 ? "answer" : "answers"} seen.`);

function describeMissing({ status, missing, needed, margin }, unit) {
  if (status === "blind") return "Its sensor never worked: blocks a promotion until rollout.accept_blind lists it";
  if (!needed) return "Raises alarms, and is not needed to promote";
  if (missing && margin != null) return `${count(missing)} more answers near stable’s`;
  return missing ? `${count(missing)} more clean ${unitName(unit, missing)}` : "";
}
