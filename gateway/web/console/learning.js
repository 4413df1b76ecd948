// The learning page: what the trainer does and why, what it has learnt of people, its rounds, and one of them in full.

import { byId, make, makeSvg, replaceChanged, setText } from "../dom.js";
import { clock, count, duration, percent } from "../format.js";
import { FEATURES, describeNow, describeProgress, describeStyle } from "../learning_words.js";
import { drawLines, shorten } from "./lines.js";
import { askConfirmation } from "./confirm.js";
import { groupCurves, listFigures, listRoundFacts, nameUse } from "./learning_figures.js";
import { Refused, call, send, startPage } from "./session.js";
import { makeRow, note, orEmpty, pill, replaceRows } from "./table.js";

const ROUNDS_EVERY_LOOKS = 5;
const TONES = { training: "go", preparing: "go", evaluating: "go", publishing: "go", failing: "bad", waiting: "wait", learning: "go" };

let numLooks = 0;
let rounds = [];

byId("figure").addEventListener("change", drawFigure);
byId("run").addEventListener("click", askToRun);
addEventListener("hashchange", showRound);
startPage(look, { pollMs: 2000 });

async function look() {
  const learning = await call("learning");
  showNow(learning);
  byId("trainer-parts").hidden = byId("run").hidden = !learning.trainer;
  if (learning.trainer) showTrainer(learning.trainer);
  if (numLooks % ROUNDS_EVERY_LOOKS === 0) await lookAtRounds();
  numLooks += 1;
}

function askToRun() {
  askConfirmation({
    title: "Run a round now?", label: "Run",
    text: "The trainer begins one at once, however few choices are new. What it publishes goes on trial as any other checkpoint.",
    fields: { from_base: { label: "From the base", type: "checkbox", hint: "On a full replay of what is stored; else from what serves." } },
  }, async ({ from_base }, showError) => (await send("rounds", { from_base }, "POST", (message) => showError(`Could not run: ${message}`))) !== null);
}

async function lookAtRounds() {
  try {
    rounds = (await call("rounds")).data;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    rounds = []; // the trainer is away: the head says why
  }
  const rows = [...rounds].reverse().map(showRow);
  replaceRows(byId("rounds"), orEmpty(rows, 6, "No round has ended yet."));
  showFigures();
  if (numLooks === 0) showRound();
}

function showNow(learning) {
  const { trainer, problem } = learning;
  setText(byId("state"), trainer?.round.state ?? "no trainer");
  byId("state").className = `pill ${trainer ? (TONES[trainer.round.state] ?? "") : "bad"}`;
  setText(byId("reason"), trainer?.round.reason ?? "");
  setText(byId("headline"), trainer ? describeNow({ problem, trainer, trial: null }) : problem);
  const { share, text } = describeProgress({ trainer, trial: null });
  byId("progress").value = share;
  setText(byId("progress-text"), text);
}

function showTrainer({ preferences, decisive, uses, dead_letters, quarantined, reward, lag }) {
  setText(byId("foreseen"), reward.num_foreseen ? percent(reward.prequential_accuracy) : "–");
  setText(byId("foreseen-more"), reward.num_foreseen ? `of the last ${count(reward.num_foreseen)} choices, before they were learnt from; a coin has 50%` : "No choice has been foreseen yet");
  setText(byId("decisive"), count(decisive));
  setText(byId("decisive-more"), `of ${count(preferences)} that arrived prefer one answer${lag ? `; ${count(lag)} still to read` : ""}`);
  setText(byId("version"), reward.version ? `Version ${reward.version}` : "None yet");
  setText(byId("version-more"), reward.refused || (reward.version_in_use === reward.version ? "in use" : `version ${reward.version_in_use} is in use`));
  setText(byId("aside"), count(dead_letters + quarantined));
  setText(byId("aside-more"), dead_letters + quarantined ? `${count(dead_letters)} could not be read, ${count(quarantined)} not learnt from` : "Every choice could be used");
  showStyle(reward.style);
  const total = Object.values(uses).reduce((sum, number) => sum + number, 0);
  const rows = Object.entries(uses).sort(([, a], [, b]) => b - a).map(([name, number]) => make("tr", {}, make("th", { scope: "row" }, nameUse(name)),
    make("td", {}, make("meter", { min: 0, max: 1, value: number / total, "aria-label": `${name}: ${percent(number / total)}` })), make("td", { class: "number" }, count(number))));
  replaceChanged(byId("uses"), orEmpty(rows, 3, "No choice has arrived yet."));
}

function showStyle(style) {
  const known = describeStyle(style);
  const items = known.length ? known.map(({ sure, text }) => make("li", { class: sure }, text, make("span", { class: "muted" }, ` (${sure})`))) : [make("li", {}, "Nothing that is sure enough to say yet.")];
  replaceChanged(byId("liked"), items);
  const rows = [...style].sort((a, b) => Math.abs(b.weight) / Math.max(b.sd, 1e-6) - Math.abs(a.weight) / Math.max(a.sd, 1e-6)).map(({ name, weight, sd }) => {
    const sureness = Math.abs(weight) / Math.max(sd, 1e-6);
    const word = sureness < 1 ? "not known" : `${weight > 0 ? "like it" : "dislike it"}, ${sureness >= 2 ? "clearly" : "probably"}`;
    return makeRow({}, [FEATURES[name]?.[0] ?? name, note(name)], word, { number: `${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(2)} ± ${sd.toFixed(2)}` });
  });
  replaceChanged(byId("style"), orEmpty(rows, 3, "No reward model yet."));
}

function showRow(round) {
  const { number, kind, outcome, checkpoint, reason, started_at: from, finished_at: to } = round;
  const links = make("div", { class: "row-actions" }, make("a", { class: "button small", href: `#${number}`, "data-name": "look", "aria-label": `Show round ${number}` }, "Show"),
    make("a", { class: "button small", href: reportOf(number), target: "_blank", rel: "noopener", "aria-label": `Report of round ${number}` }, "Report"));
  return makeRow({ "data-row": number }, [String(number), note(kind)], [pill(outcome, outcome === "published" ? "good" : "wait"),
    checkpoint ? make("a", { class: "note", href: `/console/checkpoints#${checkpoint}` }, checkpoint) : null], reason, from && to ? duration(to - from) : "–", to ? clock(to) : "–", [links]);
}

const reportOf = (number) => `/console/rounds/${number}/report`;

function showFigures() {
  const names = listFigures(rounds);
  const select = byId("figure");
  const chosen = names.includes(select.value) ? select.value : names[0];
  if ([...select.options].map(({ value }) => value).join() !== names.join()) select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (chosen) select.value = chosen;
  drawFigure();
}

function drawFigure() {
  const name = byId("figure").value;
  const points = rounds.filter(({ metrics }) => name in metrics).map(({ number, metrics }) => [number, metrics[name]]);
  drawLines(byId("by-round"), name || "Figures", [{ name, points }], { describeX: (x) => `round ${Math.round(x)}`, empty: "No round has been measured yet" });
}

/** Show the round that the address names. */
async function showRound() {
  const number = location.hash.slice(1);
  byId("round-part").hidden = !/^\d+$/.test(number);
  if (byId("round-part").hidden) return;
  setText(byId("round-heading"), `Round ${number}`);
  const round = await call(`rounds/${number}`).catch((error) => ({ error }));
  byId("report").hidden = !round.has_report;
  byId("report").href = reportOf(number);
  if (round.error) {
    setText(byId("round-heading"), `Round ${number}: ${round.error.message}`);
    for (const id of ["round-facts", "curves", "samples"]) byId(id).replaceChildren();
    setText(byId("round-aside"), "");
    return;
  }
  replaceChanged(byId("round-facts"), listRoundFacts(round).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  showCurves(round.curve);
  const aside = Object.entries(round.details.set_aside ?? {});
  setText(byId("round-aside"), aside.length ? aside.map(([part, num]) => `${count(num)} in ${part}`).join(", ") : "Nothing: every row could be used.");
  replaceChanged(byId("samples"), round.samples.length ? round.samples.map(makeSample) : [make("p", { class: "muted" }, "None on record: the round was stopped before it was judged, or is older than this gateway.")]);
  byId("round-heading").focus();
}

function showCurves(curve) {
  const groups = groupCurves(curve);
  const figures = groups.map(({ title, lines }) => {
    const svg = makeSvg("svg", { class: "plot", role: "img" });
    const keys = lines.map(({ name }, i) => make("span", {}, make("span", { class: `key line-${i % 4}` }), name));
    return make("figure", {}, make("figcaption", {}, title), svg, make("p", { class: "legend muted" }, ...keys));
  });
  byId("curves").replaceChildren(...(figures.length ? figures : [make("p", { class: "muted" }, "None on record.")]));
  groups.forEach(({ title, lines }, i) => drawLines(figures[i].querySelector("svg"), title, lines, { describeX: (share) => percent(share), describeY: shorten }));
}

function makeSample({ prompt, before, after }) {
  const side = (title, text) => make("div", { class: "said" }, make("h4", {}, title), make("p", {}, text));
  return make("div", { class: "sample" }, make("p", { class: "ask" }, prompt), make("div", { class: "beside" }, side("Before", before), side("After", after)));
}
