// What people may like about the canary that is no merit: each with how far it differs, and whether it forbids a promotion.

import { byId, make, replaceChanged } from "../dom.js";
import { count, evidence, percent, signedPercent, unitName } from "../format.js";
import { makeRow, note, pill } from "./table.js";

const TONES = { tripped: "bad", accepted: "wait", quiet: "good" };
const NAMES = {
  length: "longer answers", flattery: "flattery", refusals: "refusals", questions: "questions back", reward: "reward up while people are not",
};

/** Show the tripwires; nothing from a gateway that has none. */
export function showTripwires(tripwires, unit) {
  byId("tripwires-part").hidden = !tripwires?.length;
  replaceChanged(byId("tripwires"), (tripwires ?? []).map((wire) => makeRow({ "data-tripwire": wire.name },
    [make("span", { class: "strong" }, NAMES[wire.name] ?? wire.name), note(wire.text)],
    [pill(wire.status, TONES[wire.status] ?? ""), note(wire.status === "tripped" ? "Blocks a promotion until it is accepted" : "")],
    { number: describeDifference(wire) }, { number: `${count(wire.users)} ${unitName(unit, wire.users)}` },
    { number: `${evidence(wire.e)} of ${evidence(wire.threshold)}` })));
}

const describeDifference = ({ name, users, difference, margin, foreseen }) => {
  if (!users) return "–";
  return name === "reward"
    ? `people ${signedPercent(difference)}${foreseen === null ? "" : `, foreseen ${foreseen.toFixed(2)}`}`
    : `${signedPercent(difference)} (at most ${percent(margin)})`;
};
