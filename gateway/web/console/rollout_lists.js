// The rollout page's lists: audit trail, past rollouts.

import { byId, make, replaceChanged } from "../dom.js";
import { clock, count, phaseName, signedPercent, toneOf, unitName, why } from "../format.js";
import { actionLabel } from "./rollout_actions.js";
import { orEmpty } from "./table.js";

const keyNames = new Map();

/** Know keys by their names, as the API lists them: the audit trail names who decided. */
export function rememberKeys(keys) {
  for (const { id, name } of keys) keyNames.set(id, name);
}

function nameActor(actor) {
  const id = actor.startsWith("key:") ? actor.slice(4) : null;
  return id === null ? actor : `${keyNames.get(id) ?? "an unknown key"}, key ${id}`;
}

/** Show the audit trail, the newest first. */
export function showTrail(events) {
  const items = [...events].reverse().map((event) => make("li", {},
    make("time", { datetime: new Date(event.at * 1000).toISOString() }, clock(event.at)),
    make("div", {}, `${event.from && event.from !== event.to ? `${phaseName(event.from)} → ` : ""}${phaseName(event.to)} `, make("span", { class: "muted" }, `by ${nameActor(event.actor)}`),
      event.reason ? make("span", { class: "note" }, why(event)) : null)));
  replaceChanged(byId("trail"), items.length ? items : [make("li", { class: "empty-row" }, "Nothing has happened yet.")]);
}

/** Show the rollouts that ended, in the order given; onAction gets a rollout and what may be done with it still. */
export function showPastRollouts(rollouts, onAction) {
  const rows = rollouts.map((row) => make("tr", { "data-rollout": row.id },
    make("td", {}, make("code", {}, row.checkpoint), row.aa ? make("span", { class: "note" }, "A/A") : null),
    make("td", {}, make("span", { class: `pill ${row.reason === "Inconclusive" ? "" : toneOf(row.phase)}` }, phaseName(row.phase)),
      row.reason ? make("span", { class: "note" }, why(row)) : null),
    make("td", { class: "number" }, `${count(row.evidence.users)} ${unitName(row.evidence.unit, row.evidence.users)}`,
      row.evidence.fragility ? make("span", { class: "note" }, `fragility ${count(row.evidence.fragility)}`) : null),
    make("td", { class: "number" }, row.evidence.users ? signedPercent(row.evidence.net_win_rate) : "–"),
    make("td", {}, clock(row.finished_at)),
    make("td", {}, ...row.actions.map((name) => makePastAction(name, row, onAction)))));
  const table = byId("rollouts");
  const focused = table.contains(document.activeElement) ? document.activeElement.closest("tr")?.dataset.rollout : null;
  replaceChanged(table, orEmpty(rows, 6, "No rollout has ended yet."));
  if (focused) table.querySelector(`tr[data-rollout="${CSS.escape(focused)}"] button`)?.focus();
}

function makePastAction(name, row, onAction) {
  const label = actionLabel(name);
  const button = make("button", { class: "button small", type: "button", "aria-label": `${label} ${row.checkpoint}` }, `${label}…`);
  button.addEventListener("click", () => onAction(name, row));
  return button;
}
