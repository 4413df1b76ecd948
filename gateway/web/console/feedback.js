// The feedback page: how much is said, what, by whom, whether place or speed decides it, and what was shown last.

import { byId, make, makeSvg, replaceChanged, setText } from "../dom.js";
import { clock, count, percent, signedPercent } from "../format.js";
import { call, startPage } from "./session.js";
import { makeRow, orEmpty, pill } from "./table.js";

const VERDICTS = { first: "First is better", second: "Second is better", tie: "Tie", both_bad: "Both bad", skip: "Skipped" };
const ASKED = { explore: "to learn", duel: "duel of a rollout", random: "at random", gold: "to check people" };
const TONE = { first: "go", second: "go", tie: "", both_bad: "wait", skip: "" };

const BIAS_EVERY_LOOKS = 6;

let isHeld = false;
let numLooks = 0;

byId("hold").addEventListener("click", () => {
  isHeld = !isHeld;
  byId("hold").setAttribute("aria-pressed", String(isHeld));
});
startPage(look, { pollMs: 5000 });

async function look() {
  const [seen, newest] = await Promise.all([call("feedback"), call("feedback/comparisons?limit=20")]);
  if (numLooks % BIAS_EVERY_LOOKS === 0) showBias(await call("feedback/bias"));
  numLooks += 1;
  const { recent } = seen;
  setText(byId("num-choices"), count(recent.choices));
  setText(byId("num-choices-more"), recent.since ? `of ${count(recent.users)} known users, the oldest of ${clock(recent.since)}` : "Nobody has chosen yet");
  setText(byId("seconds"), recent.median_seconds === null ? "–" : `${recent.median_seconds.toFixed(1)} s`);
  showAgreement(seen.agreement);
  setText(byId("harm"), count(recent.harmful));
  setText(byId("harm-more"), recent.choices ? `${percent(recent.harmful / recent.choices, 1)} of choices` : "");
  drawDays(byId("days"), seen.days);
  showBars(byId("verdicts"), recent.by_verdict, VERDICTS);
  showBars(byId("asked"), recent.by_asked, ASKED);
  showUsers(recent);
  if (!isHeld) showComparisons(newest.data);
}

function showAgreement({ num, estimate, low, high }) {
  setText(byId("agreement"), num ? percent(estimate) : "–");
  setText(byId("agreement-range"), num ? `${percent(low)} to ${percent(high)}` : "");
  setText(byId("agreement-more"), num ? `of ${count(num)} questions that two users saw alike; a coin has 50%` : "No two users have seen the same two answers");
}

/** Rows of counts in the order of their names, each with its share as a bar. */
function showBars(body, counts, names) {
  const total = Object.values(counts).reduce((sum, number) => sum + number, 0);
  const known = Object.keys(names).filter((name) => name in counts);
  const rows = [...new Set([...known, ...Object.keys(counts)])].map((name) => makeBar(names[name] ?? name, counts[name], total));
  replaceChanged(body, orEmpty(rows, 3, "Nothing yet."));
}

function makeBar(label, number, total) {
  return make("tr", {}, make("th", { scope: "row" }, label),
    make("td", {}, make("meter", { min: 0, max: 1, value: number / total, "aria-label": `${label}: ${percent(number / total)}` })),
    make("td", { class: "number" }, `${count(number)} · ${percent(number / total)}`));
}

function showUsers({ top_users: top, users, choices }) {
  const rows = top.map((each) => makeBar(each.user || "unknown users", each.choices, choices));
  replaceChanged(byId("users"), orEmpty(rows, 3, "Nobody yet."));
  setText(byId("users-more"), top.length ? `Keyed hashes. ${count(users)} known users; an even share would be ${percent(1 / Math.max(1, users), 1)} each.` : "");
}

function showBias(bias) {
  setText(byId("bias-verdict"), bias.is_biased ? "Yes: place or speed has an effect." : bias.shown_first.num ? "No effect of place or speed is seen." : "Nothing to judge yet.");
  const range = ({ num, estimate, low, high }, show = percent) => (num ? [show(estimate), make("span", { class: "note" }, `${show(low)} to ${show(high)} of ${count(num)}`)] : "–");
  const rows = [["those that judge", bias], ...Object.entries(bias.by_share)].map(([name, each]) => makeRow({}, name, range(each.shown_first), range(each.finished_first), range(each.finish_effect, signedPercent)));
  replaceChanged(byId("bias"), rows);
}

function drawDays(svg, days) {
  const [width, height, edge] = [560, 200, { left: 44, bottom: 24, top: 12 }];
  const most = Math.max(1, ...days.flatMap((day) => [day.comparisons, day.choices]));
  const slot = (width - edge.left) / days.length;
  const y = (value) => height - edge.bottom - (value / most) * (height - edge.bottom - edge.top);
  const bar = (name, value, x, wide) => makeSvg("rect", { class: name, x, y: y(value), width: wide, height: height - edge.bottom - y(value), rx: 2 });
  const parts = [0, most].flatMap((value) => [
    makeSvg("line", { class: "grid", x1: edge.left, x2: width, y1: y(value), y2: y(value) }), makeSvg("text", { x: edge.left - 8, y: y(value) + 4, "text-anchor": "end" }, count(value)),
  ]);
  days.forEach((day, i) => {
    const x = edge.left + i * slot;
    const title = makeSvg("title", {}, `${dayName(day)}: ${count(day.choices)} choices of ${count(day.comparisons)} asks`);
    parts.push(makeSvg("g", {}, title, bar("asks-bar", day.comparisons, x + slot * 0.12, slot * 0.76), bar("choices-bar", day.choices, x + slot * 0.3, slot * 0.4)));
    if (i % 3 === 1 || days.length < 5) parts.push(makeSvg("text", { x: i === days.length - 1 ? width : x + slot / 2, y: height - 6, "text-anchor": i === days.length - 1 ? "end" : "middle" }, dayName(day)));
  });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const today = days.at(-1);
  svg.setAttribute("aria-label", `Asks and choices of the last ${days.length} days; today ${count(today.choices)} choices of ${count(today.comparisons)} asks`);
  svg.replaceChildren(...parts);
}

const dayName = ({ starts_at }) => new Date(starts_at * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

function showComparisons(rows) {
  const list = byId("comparisons");
  const open = new Set([...list.querySelectorAll("details[open]")].map((each) => each.dataset.id));
  const focused = list.contains(document.activeElement) ? document.activeElement.closest("details")?.dataset.id : null;
  replaceChanged(list, rows.length ? rows.map((row) => makeComparison(row, open.has(row.id))) : [make("p", { class: "muted" }, "Nothing has been compared yet.")]);
  if (focused) list.querySelector(`details[data-id="${CSS.escape(focused)}"] summary`)?.focus();
}

function makeComparison(row, isOpen) {
  const verdict = row.preferred ? pill(VERDICTS[row.preferred], TONE[row.preferred]) : pill("no answer yet");
  const candidate = (name, { text, checkpoint, arm, finish_reason: end }) => make("div", { class: `said ${row.preferred === name ? "picked" : ""}` },
    make("h3", {}, `${name === "first" ? "First" : "Second"}: `, make("code", {}, checkpoint), ` ${arm}${end === "length" ? ", cut off" : ""}`), make("p", {}, text));
  return make("details", { "data-id": row.id, open: isOpen },
    make("summary", {}, make("span", { class: "ask" }, row.prompt || "(no text)"), verdict, row.harmful ? pill("reported as harmful", "bad") : null),
    make("p", { class: "muted small" }, `${clock(row.created_at)} · ${row.app} · user ${row.user || "unknown"} · asked ${ASKED[row.asked] ?? row.asked}${row.seconds_to_decide === null ? "" : ` · decided in ${row.seconds_to_decide.toFixed(1)} s`}`),
    make("div", { class: "beside" }, candidate("first", row.first), candidate("second", row.second)));
}
