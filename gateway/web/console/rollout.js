// The rollout's page: the one that is on, else the one that ended last, and what may be done with it.

import { byId } from "../dom.js";
import { askConfirmation } from "./confirm.js";
import { checkConfirmation, confirmAction, makeActions } from "./rollout_actions.js";
import { rememberKeys, showPastRollouts } from "./rollout_lists.js";
import { clearReplay, showReplay } from "./rollout_replay.js";
import { showCountdown, showStatus } from "./rollout_view.js";
import { call, now, send, startPage } from "./session.js";

const LISTS_EVERY_LOOKS = 5;

let status = null; // with the rollout on show: the active one, else the one that ended last
let lastEnded = null;
let numLooks = 0;

makeActions(byId("actions"), (name) => confirm(name, status.rollout));
byId("replay-button").addEventListener("click", () => showReplay(status.rollout, call));
byId("start-aa").addEventListener("click", askToStartAa);
startPage(look, { tick: () => status && showCountdown(status.rollout, now()) });

async function look() {
  const fresh = await call("status");
  const hasEnded = Boolean(status?.rollout && !status.rollout.finished_at && !fresh.rollout);
  if (hasEnded || numLooks % LISTS_EVERY_LOOKS === 0) await refreshLists();
  numLooks += 1;
  if (status?.rollout?.id !== (fresh.rollout ?? lastEnded)?.id) clearReplay();
  status = { ...fresh, rollout: fresh.rollout ?? lastEnded };
  showStatus(status, now());
  checkConfirmation(status.rollout);
}

async function refreshLists() {
  const [rollouts, keys] = await Promise.all([call("rollouts"), call("keys")]);
  rememberKeys(keys.data);
  const ended = rollouts.data.filter((row) => row.finished_at).sort((a, b) => b.finished_at - a.finished_at);
  lastEnded = ended[0] ?? null;
  showPastRollouts(ended, confirm);
}

function askToStartAa() {
  askConfirmation({
    title: "Start an A/A rollout?", label: "Start",
    text: "What serves goes on trial against itself, under a new id, as soon as no other rollout is on: it must not be found better or worse.",
  }, async (_, showError) => {
    numLooks = 0;
    return (await send("rollouts", { aa: true }, "POST", (message) => showError(`Could not start: ${message}`))) !== null;
  });
}

function confirm(name, rollout) {
  confirmAction(name, rollout, async (action, body, showError) => {
    // What serves is rolled back whatever is on trial against it, as on the command line without an id.
    const path = action === "rollback" && rollout.finished_at ? "rollouts:rollback" : `rollouts/${encodeURIComponent(rollout.id)}:${action}`;
    numLooks = 0;
    return (await send(path, body, "POST", (message) => showError(`Could not ${action}: ${message}`))) !== null;
  });
}
