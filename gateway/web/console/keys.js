// The keys' page: who may ask, how much, until when, what they used; made, changed, rotated and revoked by admins. A whole key is shown once.

import { byId, make, replaceChanged, setText } from "../dom.js";
import { clock, count } from "../format.js";
import { askConfirmation } from "./confirm.js";
import { EXPIRES, FIELDS, SCOPES, describeLimits, describeState, describeUse, readDay, readLimits, writeDay } from "./keys_words.js";
import { drawLines } from "./lines.js";
import { call, now, send, startPage, whoIsIn } from "./session.js";
import { makeRow, note, orEmpty, pill, replaceRows } from "./table.js";

const USAGE_DAYS = 30;
const DAY_MS = 86_400_000;

let keys = [];

byId("create").addEventListener("click", askToCreate);
byId("copy").addEventListener("click", copyKey);
byId("hide").addEventListener("click", () => showFresh(null));
byId("show-revoked").addEventListener("change", show);
addEventListener("hashchange", () => showUsage(true));
addEventListener("pagehide", () => showFresh(null)); // the key must not wait in a page that is kept for "back"
startPage(look, { pollMs: 5000 });

async function look() {
  keys = (await call("keys")).data;
  show();
  await showUsage(false);
}

/** Show what the key used, by day, that the address names. */
async function showUsage(isAsked) {
  const key = keys.find(({ id }) => id === location.hash.slice(1));
  byId("usage-part").hidden = !key?.usage;
  if (!key?.usage) return;
  const { days, total } = await call(`keys/${encodeURIComponent(key.id)}/usage?days=${USAGE_DAYS}`);
  setText(byId("usage-heading"), `What ${key.name} used in the last ${USAGE_DAYS} days`);
  const points = days.map((day) => [Date.parse(day.day) / DAY_MS, day.prompt_tokens + day.completion_tokens]);
  drawLines(byId("usage-plot"), "Tokens by day", [{ name: "tokens", points }], {
    describeX: (x) => new Date(Math.round(x) * DAY_MS).toISOString().slice(0, 10), describeY: (y) => count(Math.round(y)), empty: "Nothing was used",
  });
  const rows = [...days].reverse().map((day) => showDay(day.day, day));
  replaceChanged(byId("usage"), orEmpty(rows.length > 1 ? [showDay("all", total), ...rows] : rows, 5, "Nothing was used."));
  if (isAsked) byId("usage-heading").focus();
}

const showDay = (name, used) => makeRow({}, name, { number: count(used.requests) }, { number: count(used.prompt_tokens) }, { number: count(used.completion_tokens) }, { number: describeUse(used).spend });

function show() {
  const { is_admin } = whoIsIn();
  byId("create").hidden = !is_admin;
  byId("keys-scope").hidden = is_admin;
  const shown = keys.filter((key) => !key.revoked_at || byId("show-revoked").checked);
  const head = ["Key", "State", "May", "Limits", "Used today", "Made", ...(is_admin ? ["Decide"] : [])];
  replaceChanged(byId("keys-head"), head.map((title) => make("th", { scope: "col" }, title)));
  replaceRows(byId("keys"), orEmpty(shown.map((key) => showKey(key, is_admin)), head.length, "No key yet."));
}

function showKey(key, is_admin) {
  const { text, tone, more: since } = describeState(key, now());
  const cells = [
    [make("span", { class: "strong" }, key.name), note(key.id), note(key.app && key.app !== key.name ? `for the app ${key.app}` : "")],
    [pill(text, tone), ...since.map(note)],
    [key.scope, note(key.pairs ? "may ask for pairs" : "never asked for pairs")], describeLimits(key.limits), showUse(key),
    clock(key.created_at),
  ];
  return makeRow({ "data-row": key.id }, ...cells, ...(is_admin ? [key.revoked_at ? "" : makeActions(key)] : []));
}

/** What it used today, with the way to what it used before. */
function showUse({ id, name, usage }) {
  if (!usage) return "–";
  const { requests, tokens, spend } = describeUse(usage.today);
  return [`${requests} requests, ${tokens} tokens`, note(spend === "–" ? "" : `spent ${spend}`),
    make("a", { class: "note", href: `#${id}`, "data-name": "usage", "aria-label": `Usage of ${name} by day` }, "by day")];
}

function makeActions(key) {
  const button = (name, label, onClick, tone = "") => {
    const made = make("button", { class: `button small ${tone}`, type: "button", "data-name": name, "aria-label": `${label} ${key.name}` }, `${label}…`);
    made.addEventListener("click", onClick);
    return made;
  };
  return [make("div", { class: "row-actions" }, button("limit", "Limit", () => askToLimit(key)), button("rotate", "Rotate", () => askToRotate(key)), button("revoke", "Revoke", () => askToRevoke(key), "danger"))];
}

function askToCreate() {
  askConfirmation({
    title: "Create a key", text: "The whole key is shown once, here.", label: "Create",
    fields: {
      name: { label: "Name of the app or person", required: true, maxlength: 200 },
      app: { label: "App whose users it speaks for", maxlength: 200, hint: "Empty: its name. Keys of one app share its users." },
      scope: { label: "It may", options: SCOPES, value: "app" },
      pairs: { label: "May ask for two answers to compare", type: "checkbox", checked: true },
      expires: EXPIRES,
      ...FIELDS,
    },
  }, async ({ name, app, scope, pairs, expires, ...given }, showError) => {
    const limits = readLimits(given);
    const isLimited = Object.values(limits).some((value) => value !== null);
    const asked = { name, app: app || null, scope, pairs, expires_at: readDay(expires), limits: isLimited ? limits : null };
    return showFresh(await send("keys", asked, "POST", (message) => showError(`Could not create: ${message}`)));
  });
}

function askToLimit(key) {
  const fields = { expires: { ...EXPIRES, value: writeDay(key.expires_at) } };
  for (const [name, field] of Object.entries(FIELDS)) fields[name] = { ...field, value: key.limits?.[name] ?? "" };
  askConfirmation({
    title: `Limit ${key.name}?`, text: "What was used already counts against the new limits. An empty field is no limit.", label: "Limit", fields,
  }, async ({ expires, ...given }, showError) => {
    const end = expires === writeDay(key.expires_at) ? {} : { expires_at: readDay(expires) };
    return (await send(`keys/${encodeURIComponent(key.id)}`, { limits: readLimits(given), ...end }, "PATCH", (message) => showError(`Could not limit: ${message}`))) !== null;
  });
}

function askToRotate(key) {
  askConfirmation({
    title: `Give ${key.name} another secret?`, text: "Its app, limits and users stay. The whole new key is shown once, here.", label: "Rotate",
    fields: { hours: { label: "Hours that the present secret goes on working", type: "number", min: 0, max: 2160, step: "any", value: 24, required: true } },
  }, async ({ hours }, showError) => showFresh(await send(`keys/${encodeURIComponent(key.id)}:rotate`, { grace_s: 3600 * Number(hours) }, "POST", (message) => showError(`Could not rotate: ${message}`))));
}

function askToRevoke(key) {
  askConfirmation({
    title: `Revoke ${key.name}?`, text: "Its requests are refused at once, here and at every other gateway within seconds. It cannot be undone.", label: "Revoke", tone: "danger",
    facts: [["Key", key.id], ["May", key.scope], ["Made", clock(key.created_at)]],
  }, async (_, showError) => (await send(`keys/${encodeURIComponent(key.id)}`, undefined, "DELETE", (message) => showError(`Could not revoke: ${message}`))) !== null);
}

/** Show a new key until it is hidden; null hides it. Returns whether there is one. */
function showFresh(made) {
  byId("fresh").hidden = !made;
  setText(byId("fresh-heading"), made ? `The key of ${made.name}` : "");
  setText(byId("fresh-key"), made?.key ?? "");
  setText(byId("copied"), "");
  // The dialog gives the focus back when it closes, which is about to happen.
  if (made) byId("confirm").addEventListener("close", () => byId("fresh-heading").focus(), { once: true });
  return made !== null;
}

async function copyKey() {
  const isCopied = await navigator.clipboard?.writeText(byId("fresh-key").textContent).then(() => true, () => false);
  setText(byId("copied"), isCopied ? "Copied." : "This browser does not let a page copy: select the key.");
  if (!isCopied) getSelection().selectAllChildren(byId("fresh-key"));
}

