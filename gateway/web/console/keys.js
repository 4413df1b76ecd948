// The keys' page: who may ask, how much, what they used; made, limited and revoked by admins. A new key is shown once.

import { byId, make, replaceChanged, setText } from "../dom.js";
import { clock } from "../format.js";
import { askConfirmation } from "./confirm.js";
import { FIELDS, SCOPES, describeLimits, describeUse, listMoreColumns, readLimits } from "./keys_words.js";
import { call, send, startPage, whoIsIn } from "./session.js";
import { makeRow, note, orEmpty, pill, replaceRows } from "./table.js";

let keys = [];

byId("create").addEventListener("click", askToCreate);
byId("copy").addEventListener("click", copyKey);
byId("hide").addEventListener("click", () => showFresh(null));
byId("show-revoked").addEventListener("change", show);
addEventListener("pagehide", () => showFresh(null)); // the key must not wait in a page that is kept for "back"
startPage(look, { pollMs: 5000 });

async function look() {
  keys = (await call("keys")).data;
  show();
}

function show() {
  const { is_admin } = whoIsIn();
  byId("create").hidden = !is_admin;
  byId("keys-scope").hidden = is_admin;
  const shown = keys.filter((key) => !key.revoked_at || byId("show-revoked").checked);
  const more = listMoreColumns(keys);
  const head = ["Key", "State", "May", "Limits", "Used", ...more.map(({ title }) => title), "Made", ...(is_admin ? ["Decide"] : [])];
  replaceChanged(byId("keys-head"), head.map((title) => make("th", { scope: "col" }, title)));
  replaceRows(byId("keys"), orEmpty(shown.map((key) => showKey(key, more, is_admin)), head.length, "No key yet."));
}

function showKey(key, more, is_admin) {
  const isExpired = key.expires_at && key.expires_at * 1000 < Date.now();
  const state = key.revoked_at ? pill("revoked", "bad") : isExpired ? pill("expired", "bad") : pill("active", "good");
  const cells = [
    [make("span", { class: "strong" }, key.name), note(key.id)], [state, note(key.revoked_at ? clock(key.revoked_at) : "")],
    [key.scope, note(key.pairs ? "may ask for pairs" : "never asked for pairs")], describeLimits(key.limits), describeUse(key),
    ...more.map(({ show: render }) => render(key)), clock(key.created_at),
  ];
  return makeRow({ "data-row": key.id }, ...cells, ...(is_admin ? [key.revoked_at ? "" : makeActions(key)] : []));
}

function makeActions(key) {
  const button = (name, label, onClick, tone = "") => {
    const made = make("button", { class: `button small ${tone}`, type: "button", "data-name": name, "aria-label": `${label} ${key.name}` }, `${label}…`);
    made.addEventListener("click", onClick);
    return made;
  };
  return [make("div", { class: "row-actions" }, button("limit", "Limit", () => askToLimit(key)), button("revoke", "Revoke", () => askToRevoke(key), "danger"))];
}

function askToCreate() {
  askConfirmation({
    title: "Create a key", text: "The whole key is shown once, here.", label: "Create",
    fields: {
      name: { label: "Name of the app or person", required: true, maxlength: 200 },
      scope: { label: "It may", options: SCOPES, value: "app" },
      pairs: { label: "May ask for two answers to compare", type: "checkbox", checked: true },
      ...FIELDS,
    },
  }, async ({ name, scope, pairs, ...given }, showError) => {
    const limits = readLimits(given);
    const made = await send("keys", { name, scope, pairs, limits: Object.values(limits).some((value) => value !== null) ? limits : null }, "POST", (message) => showError(`Could not create: ${message}`));
    if (made) showFresh(made);
    return made !== null;
  });
}

function askToLimit(key) {
  const fields = Object.fromEntries(Object.entries(FIELDS).map(([name, field]) => [name, { ...field, value: key.limits?.[name] ?? "" }]));
  askConfirmation({
    title: `Limit ${key.name}?`, text: "What was used already counts against the new limits. An empty field is no limit.", label: "Limit", fields,
  }, async (given, showError) => (await send(`keys/${encodeURIComponent(key.id)}`, { limits: readLimits(given) }, "PATCH", (message) => showError(`Could not limit: ${message}`))) !== null);
}

function askToRevoke(key) {
  askConfirmation({
    title: `Revoke ${key.name}?`, text: "Its requests are refused at once, here and at every other gateway within seconds. It cannot be undone.", label: "Revoke", tone: "danger",
    facts: [["Key", key.id], ["May", key.scope], ["Made", clock(key.created_at)]],
  }, async (_, showError) => (await send(`keys/${encodeURIComponent(key.id)}`, undefined, "DELETE", (message) => showError(`Could not revoke: ${message}`))) !== null);
}

/** Show a new key until it is hidden; null hides it. */
function showFresh(made) {
  byId("fresh").hidden = !made;
  setText(byId("fresh-heading"), made ? `The key of ${made.name}` : "");
  setText(byId("fresh-key"), made?.key ?? "");
  setText(byId("copied"), "");
  // The dialog gives the focus back when it closes, which is about to happen.
  if (made) byId("confirm").addEventListener("close", () => byId("fresh-heading").focus(), { once: true });
}

async function copyKey() {
  const isCopied = await navigator.clipboard?.writeText(byId("fresh-key").textContent).then(() => true, () => false);
  setText(byId("copied"), isCopied ? "Copied." : "This browser does not let a page copy: select the key.");
  if (!isCopied) getSelection().selectAllChildren(byId("fresh-key"));
}

