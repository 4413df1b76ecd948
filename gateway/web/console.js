// The operator's page: signs in, polls the status each second, and sends decisions with the CSRF value.

import { checkConfirmation, confirmAction, makeActions } from "./console_actions.js";
import { showCheckpoints, showPastRollouts } from "./console_lists.js";
import { clearReplay, showReplay } from "./console_replay.js";
import { showCountdown, showStatus } from "./console_view.js";
import { byId } from "./dom.js";

const POLL_MS = 1000;
const LISTS_EVERY_POLLS = 5;

let csrf = "";
let status = null; // with the rollout on show: the active one, else the one that ended last
let lastEnded = null;
let clockSkewS = 0; // the gateway's clock minus ours
let numPolls = 0;
let timer = null;

class SignedOut extends Error {}

const now = () => Date.now() / 1000 + clockSkewS;

byId("sign-in-form").addEventListener("submit", signIn);
byId("sign-out").addEventListener("click", signOut);
makeActions(byId("actions"), (name) => confirm(name, status.rollout));
byId("replay-button").addEventListener("click", () => showReplay(status.rollout, call));
byId("confirm-no").addEventListener("click", () => byId("confirm").close());
start();

async function start() {
  const response = await fetch("/console/session").catch(() => null);
  const session = response?.ok ? await response.json() : null;
  if (!session?.signed_in) return showSignIn();
  enter(session);
}

async function signIn(event) {
  event.preventDefault();
  const error = byId("sign-in-error");
  error.hidden = true;
  try {
    const response = await fetch("/console/session", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ key: byId("key").value.trim() }),
    });
    const body = await response.json();
    if (!response.ok) throw new Error(body.error?.message ?? "That key was not accepted.");
    byId("key").value = "";
    enter(body);
  } catch (failure) {
    error.textContent = failure instanceof TypeError ? "The gateway cannot be reached." : failure.message;
    error.hidden = false;
    byId("key").select();
  }
}

async function signOut() {
  await fetch("/console/session", { method: "DELETE", headers: { "x-prefloop-csrf": csrf } }).catch(() => null);
  showSignIn();
}

function showSignIn() {
  clearTimeout(timer);
  timer = null;
  csrf = "";
  byId("confirm").close();
  for (const id of ["dashboard", "sign-out", "live"]) byId(id).hidden = true;
  byId("sign-in").hidden = false;
  byId("key").focus();
}

function enter(session) {
  csrf = session.csrf;
  byId("sign-in").hidden = true;
  byId("sign-out").hidden = false;
  numPolls = 0;
  poll();
}

async function poll() {
  clearTimeout(timer);
  try {
    const fresh = await call("status");
    const hasEnded = Boolean(status?.rollout && !status.rollout.finished_at && !fresh.rollout);
    if (hasEnded || numPolls % LISTS_EVERY_POLLS === 0) await refreshLists();
    numPolls += 1;
    if (status?.rollout?.id !== (fresh.rollout ?? lastEnded)?.id) clearReplay();
    status = { ...fresh, rollout: fresh.rollout ?? lastEnded };
    showStatus(status, now());
    checkConfirmation(status.rollout);
    byId("dashboard").hidden = false;
    setLive("Live", false);
  } catch (error) {
    if (error instanceof SignedOut) return showSignIn();
    if (status) showCountdown(status.rollout, now());
    setLive(`No answer: ${error.message}`, true);
  }
  timer = setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
}

async function refreshLists() {
  const [checkpoints, rollouts] = await Promise.all([call("checkpoints"), call("rollouts")]);
  const ended = rollouts.data.filter((row) => row.finished_at).sort((a, b) => b.finished_at - a.finished_at);
  lastEnded = ended[0] ?? null;
  showCheckpoints(checkpoints.data);
  showPastRollouts(ended, confirm);
}

/** Call the operator API with the session. Rejects with SignedOut, or with an Error whose message can be shown. */
async function call(path, body) {
  const options = body && {
    method: "POST",
    headers: { "content-type": "application/json", "x-prefloop-csrf": csrf },
    body: JSON.stringify(body),
  };
  const response = await fetch(`/operator/v1/${path}`, options).catch(() => {
    throw new Error("the gateway cannot be reached");
  });
  const date = Date.parse(response.headers.get("date") ?? "") / 1000;
  if (date && Math.abs(date - Date.now() / 1000 - clockSkewS) > 2) clockSkewS = date - Date.now() / 1000;
  if (response.status === 401) throw new SignedOut();
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new Error(answer?.error?.message ?? `the gateway said ${response.status}`);
  return answer;
}

function confirm(name, rollout) {
  confirmAction(name, rollout, (action, body, showError) => decide(action, rollout, body, showError));
}

/** Send a decision about a rollout. Resolves to true when it was taken. */
async function decide(action, rollout, body, showError) {
  // What serves is rolled back whatever is on trial against it, as on the command line without an id.
  const path = action === "rollback" && rollout.finished_at ? "rollouts:rollback" : `rollouts/${encodeURIComponent(rollout.id)}:${action}`;
  try {
    await call(path, body);
    showProblem("");
    numPolls = 0;
    poll();
    return true;
  } catch (error) {
    if (error instanceof SignedOut) showSignIn();
    else showError(`Could not ${action}: ${error.message}`);
    return false;
  }
}

function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function setLive(text, lost) {
  const live = byId("live");
  live.hidden = false;
  live.classList.toggle("lost", lost);
  if (live.textContent !== text) live.textContent = text;
}
