// Rows of tables.

import { make, replaceChanged } from "../dom.js";

/** Rows of a table, or one that says why there is none. */
export function orEmpty(rows, columns, text) {
  return rows.length ? rows : [make("tr", {}, make("td", { class: "empty-row", colspan: columns }, text))];
}

/** A row of cells: each a text, a node, null, or {number: text} for one that is aligned as a figure. */
export function makeRow(attributes, ...cells) {
  return make("tr", attributes, ...cells.map((cell) => (cell?.number === undefined
    ? make("td", {}, ...(Array.isArray(cell) ? cell : [cell]))
    : make("td", { class: "number" }, cell.number))));
}

/** A small line below a cell's first; nothing for "". */
export const note = (text) => (text ? make("span", { class: "note" }, text) : null);

/** A word in a coloured pill. */
export const pill = (text, tone = "") => make("span", { class: `pill ${tone}` }, text);

/** Replace a table's rows, unless a person is in the middle of it: a focused control keeps the focus by data-row. */
export function replaceRows(body, rows) {
  const focused = body.contains(document.activeElement) ? document.activeElement : null;
  const row = focused?.closest("tr")?.dataset.row;
  const name = focused?.dataset.name;
  replaceChanged(body, rows);
  if (row !== undefined) body.querySelector(`tr[data-row="${CSS.escape(row)}"] [data-name="${CSS.escape(name ?? "")}"]`)?.focus();
}
