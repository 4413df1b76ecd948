// What every page of the console does: signs in and out, asks the operator API with the session, and looks again and again.

import { byId, setText } from "../dom.js";

let csrf = "";
let session = null; // {name, is_admin, key_id, expires_at}
let clockSkewS = 0; // the gateway's clock minus ours
let page = null; // {look, pollMs, tick}
let timer = null;
let turn = 0; // of looking: what an older look finds is not shown

export class SignedOut extends Error {}

/** The gateway's clock, in epoch seconds. */
export const now = () => Date.now() / 1000 + clockSkewS;

/** Who is signed in: {name, is_admin, …}. */
export const whoIsIn = () => session;

/**
 * Begin: show the page to whoever is signed in. look() fetches and shows; it runs at once, each pollMs, and by lookNow().
 * tick() runs where a look got no answer, so that what counts down goes on.
 */
export async function startPage(look, { pollMs = 1000, tick = () => {} } = {}) {
  page = { look, pollMs, tick };
  byId("sign-in-form").addEventListener("submit", signIn);
  byId("sign-out").addEventListener("click", signOut);
  document.querySelector('nav [aria-current="page"]').scrollIntoView({ block: "nearest", inline: "center" });
  const response = await fetch("/console/session").catch(() => null);
  const found = response?.ok ? await response.json() : null;
  if (found?.signed_in) enter(found);
  else showSignIn();
}

/** Look now: something was done. */
export async function lookNow() {
  clearTimeout(timer);
  const mine = ++turn;
  try {
    await page.look();
    byId("dashboard").hidden = false;
    setLive("Live", false);
  } catch (error) {
    if (error instanceof SignedOut) return showSignIn();
    if (!(error instanceof Refused)) reportError(error);
    page.tick();
    setLive(`No answer: ${error.message}`, true);
  }
  if (mine === turn && session) timer = setTimeout(lookNow, document.hidden ? 5 * page.pollMs : page.pollMs);
}

/** What the gateway refused, or that it cannot be reached: the message can be shown. */
export class Refused extends Error {
  constructor(message, status = null) {
    super(message);
    this.status = status;
  }
}

/** Call the operator API with the session: GET, or POST with a body. Rejects with SignedOut or Refused. */
export async function call(path, body, method = body === undefined ? "GET" : "POST") {
  const options = { method, headers: {} };
  if (method !== "GET") options.headers["x-prefloop-csrf"] = csrf;
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(`/operator/v1/${path}`, options).catch(() => {
    throw new Refused("the gateway cannot be reached");
  });
  const date = Date.parse(response.headers.get("date") ?? "") / 1000;
  if (date && Math.abs(date - Date.now() / 1000 - clockSkewS) > 2) clockSkewS = date - Date.now() / 1000;
  if (response.status === 401) throw new SignedOut();
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(answer?.error?.message ?? `the gateway said ${response.status}`, response.status);
  return answer;
}

/** Send what was decided, then look again. Resolves to the answer, or to null after showError(message). */
export async function send(path, body, method, showError) {
  try {
    const answer = await call(path, body, method);
    lookNow();
    return answer ?? {};
  } catch (error) {
    if (error instanceof SignedOut) showSignIn();
    else showError(error.message);
    return null;
  }
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
  csrf = "";
  session = null;
  byId("confirm").close();
  for (const id of ["dashboard", "sign-out", "live", "who"]) byId(id).hidden = true;
  byId("sign-in").hidden = false;
  byId("key").focus();
}

function enter(found) {
  ({ csrf } = found);
  session = found;
  byId("sign-in").hidden = true;
  byId("sign-out").hidden = false;
  byId("who").hidden = false;
  setText(byId("who"), found.is_admin && found.name === "admin" ? "admin" : `${found.name}, ${found.is_admin ? "admin" : "operator"}`);
  lookNow();
}

function setLive(text, lost) {
  const live = byId("live");
  live.hidden = false;
  live.classList.toggle("lost", lost);
  setText(live, text);
}
