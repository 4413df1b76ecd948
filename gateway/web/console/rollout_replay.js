// Makes every decision of a rollout again, when asked to, and shows whether each comes out the same.

import { byId, make, replaceChanged, setText } from "../dom.js";
import { clock, count } from "../format.js";

/** Show no replay: another rollout is on show. */
export function clearReplay() {
  byId("replay").replaceChildren();
  setText(byId("replay-summary"), "");
}

/** Ask for the replay of a rollout, with call(path), and show it. */
export async function showReplay(rollout, call) {
  clearReplay();
  setText(byId("replay-summary"), "Deciding again…");
  try {
    const { decisions } = await call(`rollouts/${encodeURIComponent(rollout.id)}/replay`);
    const numSame = decisions.filter((one) => one.is_same).length;
    setText(byId("replay-summary"), decisions.length ? `${count(numSame)} of ${count(decisions.length)} decisions come out the same` : "No decision was made.");
    replaceChanged(byId("replay"), decisions.map(makeRow));
  } catch (error) {
    setText(byId("replay-summary"), `Could not replay: ${error.message}`);
  }
}

function makeRow({ at, verdict, digest, replayed, is_same, is_same_code }) {
  const outcome = is_same ? "same" : replayed ? "otherwise" : "cannot be made again";
  return make("li", {},
    make("time", { datetime: new Date(at * 1000).toISOString() }, clock(at)),
    make("div", {}, verdict, " ", make("span", { class: `pill ${is_same ? "good" : "bad"}` }, outcome),
      make("span", { class: "note" }, make("code", {}, digest.slice(0, 12)), is_same_code ? "" : " – decided by other code")));
}
