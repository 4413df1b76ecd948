// A round's figures, put in order: which are drawn, and what a round was made of. Pure functions.

import { clock, count, duration } from "../format.js";
import { shorten } from "./lines.js";

// What is asked first, by the beginning of its name.
const FIRST = ["win_rate", "reward_accuracy", "accuracy", "kl", "loss"];
const CURVES = [
  ["Loss", ["loss", "nll", "policy_loss", "value_loss"]],
  ["Margin of chosen over rejected, in nats", ["margin", "chosen_log_ratio", "rejected_log_ratio", "log_ratio"]],
  ["Accuracy on the round’s own pairs", ["accuracy"]],
  ["KL to the reference", ["kl"]],
  ["Reward of its own answers", ["reward", "return", "value"]],
  ["Gradient norm", ["grad_norm"]],
];
const MAX_LINES = 4;

const USES = {
  trained: "learnt from", waiting: "wait to be learnt from", heldout: "kept to judge", auditor: "the auditor’s own", skip: "skipped",
  quarantined: "could not be learnt from", unused: "not used",
};

/** What became of choices, in words. */
export const nameUse = (name) => USES[name] ?? name.replaceAll("_", " ");

/** Names of the figures that any round has, the interesting first. */
export function listFigures(rounds) {
  const names = [...new Set(rounds.flatMap(({ metrics }) => Object.keys(metrics)))].sort();
  const rank = (name) => {
    const at = FIRST.findIndex((beginning) => name.startsWith(beginning));
    return at < 0 ? FIRST.length : at;
  };
  return names.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

/** The curves of a round's training: {title, lines: [{name, points}]} each, by what their names begin with. */
export function groupCurves(curve) {
  const names = [...new Set(curve.flatMap((point) => Object.keys(point)))].filter((name) => name !== "share").sort();
  return CURVES.map(([title, beginnings]) => {
    const chosen = names.filter((name) => beginnings.some((beginning) => name.startsWith(beginning))).slice(0, MAX_LINES);
    const lines = chosen.map((name) => ({ name, points: curve.filter((point) => name in point).map((point) => [point.share, point[name]]) }));
    return { title, lines };
  }).filter(({ lines }) => lines.length);
}

/** What a round was made of, and how it ended: [name, value] pairs. */
export function listRoundFacts({ kind, outcome, reason, checkpoint, start, started_at: from, finished_at: to, attempts, num_left, num_rows, details, metrics, phases }) {
  const spent = Object.entries(details.phases ?? phases ?? {}).map(([name, seconds]) => `${name} ${duration(seconds)}`);
  const rows = [
    ["Kind", kind], ["Outcome", `${outcome || "under way"}${checkpoint ? `: ${checkpoint}` : ""}`], ["Why", reason || "–"],
    ["Began", from ? `${clock(from)}, from ${start}${details.parent ? ` (${details.parent})` : ""}` : "–"], ["Took", from && to ? duration(to - from) : "–"],
    ["Where the time went", spent.join(", ")], ["Attempts", count(attempts)],
    ["Rows", `${count(details.num_new)} new, ${count(details.num_replayed)} replayed; its checkpoint learnt from ${count(num_rows)}`],
    ["Left for the next", count(num_left)], ["Reward model", details.reward_version ? `version ${details.reward_version}` : ""],
    ["Figures", Object.entries(metrics).slice(0, 12).map(([name, value]) => `${name} ${shorten(value)}`).join(", ")],
  ];
  return rows.filter(([, value]) => value);
}
