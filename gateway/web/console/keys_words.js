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

/** The input of when a key ends. */
export const EXPIRES = { label: "Ends at the end of", type: "date", hint: "A day of UTC. Empty: never." };

const DAY_S = 86_400;

/** The epoch seconds at which a day ends that an input names; null for none. */
export const readDay = (text) => (text ? Date.parse(`${text}T00:00:00Z`) / 1000 + DAY_S : null);

/** The day on which epoch seconds fall, as an input has it: the one that ends then; "" for null. */
export const writeDay = (at) => (at ? new Date((at - 1) * 1000).toISOString().slice(0, 10) : "");

/** How a key stands: {text, tone, more: lines}. now: epoch seconds. */
export function describeState({ revoked_at, expires_at, old_secret_until }, now) {
  if (revoked_at) return { text: "revoked", tone: "bad", more: [clock(revoked_at)] };
  const ends = expires_at ? `${expires_at <= now ? "ended" : "ends"} ${clock(expires_at)}` : "";
  if (expires_at && expires_at <= now) return { text: "expired", tone: "bad", more: [ends] };
  const old = old_secret_until && old_secret_until > now ? `its old secret works until ${clock(old_secret_until)}` : "";
  return { text: "active", tone: "good", more: [ends, old] };
}

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

/** What was used: {requests, tokens, spend} as texts. */
export const describeUse = ({ requests, prompt_tokens, completion_tokens, spend }) => ({
  requests: count(requests), tokens: count(prompt_tokens + completion_tokens), spend: spend ? spend.toFixed(4) : "–",
});
