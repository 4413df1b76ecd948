// The evidence by slice and by place on the page: who likes the canary, and whether where it stands decides.

import { byId, make, replaceChanged, setText } from "../dom.js";
import { count, evidence, percent, signedPercent, unitName } from "../format.js";
import { makeRow, note, pill } from "./table.js";

const TONE = { pass: "good", fail: "bad", accepted: "wait" };
const SAID = { fail: "They prefer stable: blocks a promotion", accepted: "They prefer stable, which rollout.accept_slices allows" };

/** Show the slices; none where no request was tagged. */
export function showSlices(slices, unit) {
  byId("slices-part").hidden = !slices?.length;
  replaceChanged(byId("slices"), (slices ?? []).map((slice) => makeRow({ "data-slice": `${slice.name}=${slice.value}` },
    [make("span", { class: "strong" }, slice.value), note(slice.name)],
    [pill(slice.status, TONE[slice.status] ?? ""), note(SAID[slice.status] ?? "")],
    { number: signedPercent(slice.net) }, { number: `${signedPercent(slice.lower)} to ${signedPercent(slice.upper)}` },
    { number: `${count(slice.users)} ${unitName(unit, slice.users)}${slice.waiting ? `, ${count(slice.waiting)} waiting` : ""}` },
    { number: `${evidence(Math.exp(slice.log_e_inferior))} of ${evidence(Math.exp(slice.log_threshold))}` })));
}

/** Show how the canary fares in each place; both_bad_share: of all votes. */
export function showPositions({ positions, both_bad_share }) {
  const places = positions ? [["Shown first", positions.first], ["Shown second", positions.second]] : [];
  byId("positions-part").hidden = !places.some(([, place]) => place.votes);
  replaceChanged(byId("positions"), places.map(([name, place]) => makeRow({}, name,
    { number: place.net_win_rate === null ? "–" : signedPercent(place.net_win_rate) }, { number: count(place.wins) }, { number: count(place.ties + place.both_bad) },
    { number: count(place.losses) })));
  if (!positions) return;
  setText(byId("positions-more"), [
    positions.first_share === null ? "" : `What is shown first is preferred in ${percent(positions.first_share)} of duels, whosever it is; the order is random, so the verdict stands.`,
    `Both bad: ${percent(both_bad_share)} of votes.`,
  ].filter(Boolean).join(" "));
}
