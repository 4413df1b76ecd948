// The operator's page: signs in, polls the status each second, and sends decisions with the CSRF value.

import { byId, showCheckpoints, showCountdown, showPastRollouts, showStatus } from "./console_view.js";

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
byId("approve").addEventListener("click", confirmApproval);
byId("abort").addEventListener("click", confirmAbort);
byId("pause").addEventListener("click", () => decide("pause", {}));
byId("resume").addEventListener("click", () => decide("resume", {}));
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
    status = { ...fresh, rollout: fresh.rollout ?? lastEnded };
    showStatus(status, now());
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
  showPastRollouts(ended);
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

/** Send a decision about the rollout on show. Resolves to true when it was taken. */
async function decide(action, body, showError = showProblem) {
  try {
    await call(`rollouts/${encodeURIComponent(status.rollout.id)}:${action}`, body);
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

function confirmApproval() {
  // What the operator saw is what is approved: the gateway refuses if the decision has changed since.
  const { generation, decision_digest, checkpoint, verdict_sentence } = status.rollout;
  openConfirm({
    title: "Promote this checkpoint?",
    text: `${verdict_sentence} ${checkpoint} will serve everyone; the old one keeps a small share while it bakes.`,
    yes: "Approve",
    onYes: (showError) => decide("approve", { generation, decision_digest }, showError),
  });
}

function confirmAbort() {
  openConfirm({
    title: "Abort this rollout?",
    text: `Everyone goes back to stable. ${status.rollout.checkpoint} will not be tried again by itself.`,
    yes: "Abort",
    danger: true,
    onYes: (showError) => decide("abort", { note: byId("reason").value.trim() }, showError),
  });
}

function openConfirm({ title, text, yes, danger = false, onYes }) {
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  byId("confirm-yes").classList.toggle("danger", danger);
  byId("confirm-yes").disabled = false;
  byId("reason-field").hidden = !danger;
  byId("reason").value = "";
  const error = byId("confirm-error");
  error.hidden = true;
  byId("confirm-form").onsubmit = async (event) => {
    event.preventDefault();
    byId("confirm-yes").disabled = true;
    const taken = await onYes((message) => {
      error.textContent = message;
      error.hidden = false;
    });
    byId("confirm-yes").disabled = false;
    if (taken) byId("confirm").close();
  };
  byId("confirm").showModal();
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
