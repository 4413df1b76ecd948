// Checkpoints in order and in words. Pure functions.

import { clock, count } from "../format.js";
import { shorten } from "./lines.js";

/** Checkpoints each below what it began from: {row, depth}. Siblings by number; one whose parent is gone stands alone. */
export function orderByLineage(checkpoints) {
  const ids = new Set(checkpoints.map(({ id }) => id));
  const children = Map.groupBy([...checkpoints].sort((a, b) => a.number - b.number), ({ parent }) => (ids.has(parent) ? parent : null));
  const ordered = [];
  const add = (parent, depth) => {
    for (const row of children.get(parent) ?? []) {
      ordered.push({ row, depth });
      add(row.id, depth + 1);
    }
  };
  add(null, 0);
  return ordered;
}

/** What the manifest says: [name, value] pairs. */
export function listManifest(row) {
  const kinds = { lora: `LoRA adapter, rank ${row.rank}`, full: "whole model", aa: "stable’s own weights, for an A/A rollout" };
  return [
    ["Number", count(row.number)], ["Began from", row.parent ?? "nothing: it is the first"], ["Kind", kinds[row.kind] ?? row.kind],
    ["Learnt from", `${count(row.num_preferences)} choices`], ["Made", clock(row.created_at)], ["Arrived", clock(row.arrived_at)],
    ["Digest", row.digest.slice(0, 16)], ["Base", row.base_digest.slice(0, 16)], ["Files", `${count(row.num_files)} in ${row.path}`],
    ["Log read up to", Object.entries(row.watermark).map(([partition, offset]) => `${partition}: ${count(offset)}`).join(", ") || "–"],
  ];
}

/** Offline figures beside the parent's: {name, value, before, difference} as texts. */
export function listFigureRows(metrics, before) {
  const show = (value) => (value === undefined ? "–" : shorten(value));
  return Object.keys(metrics).sort().filter((name) => typeof metrics[name] === "number").map((name) => {
    const difference = typeof before[name] === "number" ? metrics[name] - before[name] : null;
    return { name, value: show(metrics[name]), before: show(before[name]), difference: difference === null ? "–" : `${difference > 0 ? "+" : difference < 0 ? "−" : ""}${shorten(Math.abs(difference))}` };
  });
}
