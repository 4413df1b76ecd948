// What a key may do, its limits and what it used, in words. Pure functions.

import { clock, count } from "../format.js";

export const SCOPES = [
  ["app", "ask, as an app"], ["chooser", "send choices and signals only"], ["operator", "operate rollouts"], ["admin", "everything, keys included"],
];

const amount = (label) => ({ label, type: "number", min: 0, step: 1 });
const money = (label) => ({ label, type: "number", min: 0, step: "any" });

/** The inputs of a key's limits, by the API's names. */
export const FIELDS = {
  requests_per_minute: amount("Requests a minute"),
  requests_per_day: amount("Requests a day"),
  tokens_per_minute: amount("Tokens a minute"),
  tokens_per_day: amount("Tokens a day"),
  budget_per_day: { ...money("Budget a day"), hint: "In the currency of the prices in the settings. Empty: no limit." },
};

/** Limits as the API takes them: null for an empty field. */
export const readLimits = (given) => Object.fromEntries(Object.keys(FIELDS).map((name) => [name, given[name] === "" ? null : Number(given[name])]));

/** "60 requests a minute, 5 a day of budget"; "none" where nothing is limited. */
export function describeLimits(limits) {
  const said = Object.entries(limits ?? {}).filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => {
    const [kind, , length] = name.split("_");
    return `${count(value)} ${kind === "budget" ? "of budget" : kind} a ${length}`;
  });
  return said.join(", ") || "none";
}

/** What a key used today, as far as the gateway says it. */
export function describeUse({ usage, used, spend }) {
  const today = usage?.today ?? usage ?? used ?? {};
  const parts = [
    today.requests !== undefined ? `${count(today.requests)} requests` : "", today.tokens !== undefined ? `${count(today.tokens)} tokens` : "",
    (today.spend ?? spend) !== undefined ? `${(today.spend ?? spend).toFixed(4)} spent` : "",
  ].filter(Boolean);
  return parts.length ? parts.join(", ") : "–";
}

/** Columns that some gateways have and others lack: {title, show(key)}. */
export function listMoreColumns(keys) {
  const columns = [["expires_at", "Expires", (at) => (at ? clock(at) : "never")], ["last_used_at", "Last used", (at) => (at ? clock(at) : "never")]];
  return columns.filter(([name]) => keys.some((key) => key[name] !== undefined)).map(([name, title, render]) => ({ title, show: (key) => render(key[name]) }));
}
