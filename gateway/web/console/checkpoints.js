// The checkpoints' page: where each comes from, its manifest and figures, what it says beside the others, and the ladder.

import { byId, make, replaceChanged, setText } from "../dom.js";
import { clock, count, percent, phaseName, signedPercent, toneOf, why } from "../format.js";
import { askConfirmation } from "./confirm.js";
import { listFigureRows, listManifest, orderByLineage } from "./checkpoints_words.js";
import { drawLines } from "./lines.js";
import { Refused, call, send, startPage } from "./session.js";
import { makeRow, note, orEmpty, pill } from "./table.js";

const TONES = { stable: "good", canary: "go", baking: "go", waiting: "wait" };
const RUNGS_EVERY_LOOKS = 5;

let checkpoints = [];
let rounds = [];
let rollouts = [];
let shownId = null;
let numLooks = 0;

addEventListener("hashchange", () => showDetail(true));
byId("start").addEventListener("click", askToStart);
byId("delete").addEventListener("click", askToDelete);
startPage(look, { pollMs: 3000 });

async function look() {
  [{ data: checkpoints }, { data: rollouts }] = await Promise.all([call("checkpoints"), call("rollouts?limit=100")]);
  if (numLooks % RUNGS_EVERY_LOOKS === 0) rounds = await call("rounds").then(({ data }) => data, forgive);
  numLooks += 1;
  showLineage();
  showLadder();
  await showDetail(false);
}

/** Where the trainer is away there are no rounds; anything else is told. */
function forgive(error) {
  if (!(error instanceof Refused)) throw error;
  return [];
}

/** The one that the address names, else the one that serves. */
function findShown() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  return checkpoints.find(({ id }) => id === wanted) ?? checkpoints.find(({ status }) => status === "stable") ?? checkpoints.at(-1);
}

function showLineage() {
  const list = byId("lineage");
  const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const shown = findShown()?.id;
  const items = orderByLineage(checkpoints).map(({ row, depth }) => make("li", { class: `depth-${Math.min(depth, 8)}` },
    make("a", { href: `#${row.id}`, "aria-current": row.id === shown ? "true" : null }, make("code", {}, row.id)),
    pill(row.status, TONES[row.status] ?? ""), make("span", { class: "muted small" }, clock(row.created_at))));
  replaceChanged(list, items.length ? items : [make("li", { class: "muted" }, "No checkpoint yet.")]);
  if (focused) list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

async function showDetail(isAsked) {
  const found = findShown();
  byId("detail").hidden = !found;
  if (!found) return;
  const row = await call(`checkpoints/${encodeURIComponent(found.id)}`);
  const isNew = shownId !== row.id;
  shownId = row.id;
  setText(byId("detail-heading"), row.id);
  setText(byId("detail-status"), row.status);
  byId("detail-status").className = `pill ${TONES[row.status] ?? ""}`;
  const round = rounds.find(({ checkpoint }) => checkpoint === row.id);
  replaceChanged(byId("manifest"), listManifest(row).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  setText(byId("settings"), JSON.stringify(row.settings, null, 1));
  byId("start").hidden = ["stable", "canary", "baking", "waiting", "deleted"].includes(row.status);
  byId("delete").hidden = !row.may_delete || row.status === "deleted";
  byId("round-link").hidden = !round;
  if (round) byId("round-link").href = `/console/learning#${round.number}`;
  showRollouts(row);
  showFigures(row);
  if (isNew) await showSamples(row, round);
  if (isAsked) byId("detail-heading").focus();
}

function showRollouts({ id }) {
  const items = rollouts.filter(({ checkpoint }) => checkpoint === id).map((rollout) => make("li", {},
    pill(phaseName(rollout.phase), toneOf(rollout.phase)), ` against ${rollout.stable}, ${count(rollout.evidence.users)} ${rollout.evidence.unit}s, net ${signedPercent(rollout.evidence.net_win_rate)}`,
    note(rollout.reason ? why(rollout) : ""), note(clock(rollout.created_at))));
  replaceChanged(byId("its-rollouts"), items.length ? items : [make("li", { class: "muted" }, "It has not been on trial.")]);
}

function showFigures(row) {
  const parent = checkpoints.find(({ id }) => id === row.parent);
  setText(byId("figures-this"), "This one");
  setText(byId("figures-parent"), parent ? "Its parent" : "No parent");
  const rows = listFigureRows(row.metrics, parent?.metrics ?? {}).map(({ name, value, before, difference }) => makeRow({}, name, { number: value }, { number: before }, { number: difference }));
  replaceChanged(byId("figures"), orEmpty(rows, 4, "Nothing was measured of it."));
}

async function showSamples({ id, parent }, round) {
  const detail = round ? await call(`rounds/${round.number}`).catch(() => null) : null;
  if (shownId !== id) return;
  const samples = detail?.samples ?? [];
  setText(byId("samples-from"), samples.length ? `What both said when round ${round.number} was judged, stable then being ${detail.details.parent ?? parent}.` : "");
  const side = (title, text) => (text === undefined ? null : make("div", { class: "said" }, make("h3", {}, title), make("p", {}, text)));
  const items = samples.map(({ prompt, before, after, base }) => make("div", { class: "sample" }, make("p", { class: "ask" }, prompt),
    make("div", { class: "beside" }, side("Stable", before), side("This one", after), side("Base", base))));
  replaceChanged(byId("samples"), items.length ? items : [make("p", { class: "muted" }, "None on record of this one.")]);
}

function showLadder() {
  const rungs = rounds.map(({ rung }) => rung).filter(Boolean);
  const frozen = [...new Set(rungs.flatMap((rung) => Object.keys(rung.frozen)))].sort();
  const head = ["Checkpoint", "Wins against checkpoint 0", "Judged by the", ...frozen];
  replaceChanged(byId("ladder-head"), head.map((title) => make("th", { scope: "col" }, title)));
  const rows = rungs.map((rung) => makeRow({}, make("code", {}, rung.checkpoint), `${percent(rung.win_rate.value)} (${percent(rung.win_rate.low)} to ${percent(rung.win_rate.high)})`, rung.judge,
    ...frozen.map((name) => (name in rung.frozen ? percent(rung.frozen[name]) : "–"))));
  replaceChanged(byId("ladder"), orEmpty(rows, head.length, "No checkpoint has been measured beside checkpoint 0."));
  const points = rungs.map(({ win_rate }, i) => [i + 1, win_rate.value]);
  drawLines(byId("ladder-plot"), "Wins against checkpoint 0", [{ name: "wins", points }], { describeX: (x) => `rung ${Math.round(x)}`, describeY: (y) => percent(y), empty: "No rung yet" });
}

function askToStart() {
  const id = shownId;
  askConfirmation({
    title: "Put it on trial?", text: `A rollout of ${id} against what serves now begins as soon as no other is on.`, label: "Start",
  }, async (_, showError) => (await send("rollouts", { checkpoint: id }, "POST", (message) => showError(`Could not start: ${message}`))) !== null);
}

function askToDelete() {
  const id = shownId;
  askConfirmation({
    title: "Give it up for good?", text: `Nothing needs ${id}: its files may go, and it cannot serve again.`, label: "Delete", tone: "danger",
  }, async (_, showError) => (await send(`checkpoints/${encodeURIComponent(id)}`, undefined, "DELETE", (message) => showError(`Could not delete: ${message}`))) !== null);
}
