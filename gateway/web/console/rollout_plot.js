// The two plots of a rollout, drawn as SVG: net win rate with its interval, and the e-values on a logarithmic axis.
// Colours come from CSS classes; the caller owns the <svg>.

import { makeSvg } from "../dom.js";
import { duration, evidence, signedPercent, unitName } from "../format.js";

const WIDTH = 560;
const HEIGHT = 240;
const EDGE = { left: 54, right: 14, top: 14, bottom: 28 };

/** Draw net win rate and interval against the lines to cross: 0, and delta where it is not 0. */
export function drawNet(svg, series, { startedAt, delta = 0, unit }) {
  const reach = Math.max(0.2, delta, ...series.flatMap((p) => [Math.abs(p.low), Math.abs(p.high)].filter(Number.isFinite)));
  const bound = Math.min(1, Math.ceil(reach * 5) / 5);
  const x = timeScale(series, startedAt);
  const y = linear(-bound, bound, HEIGHT - EDGE.bottom, EDGE.top);
  const step = bound > 0.6 ? 0.5 : bound > 0.3 ? 0.2 : 0.1;
  const ticks = [];
  for (let v = -Math.floor(bound / step) * step; v <= bound + 1e-9; v += step) ticks.push(Math.abs(v) < 1e-9 ? 0 : v);

  const parts = [...grid(ticks, y, signedPercent), ...timeAxis(series, x, startedAt)];
  if (series.length) {
    const upper = series.map((p) => `${x(p.at)},${y(clamp(p.high, bound))}`);
    const lower = series.map((p) => `${x(p.at)},${y(clamp(p.low, bound))}`).reverse();
    parts.push(makeSvg("polygon", { class: "band", points: [...upper, ...lower].join(" ") }));
    parts.push(path("net", series, (p) => x(p.at), (p) => y(p.net)), dot("net-dot", x(series.at(-1).at), y(series.at(-1).net)));
  }
  parts.push(line("zero", y(0)), label("zero-label", EDGE.left + 6, y(0) + 15, delta ? "0 · no better than stable" : "0 · the whole band must rise above"));
  if (delta) parts.push(line("delta", y(delta)), label("delta-label", EDGE.left + 6, y(delta) - 6, `${signedPercent(delta)} · the whole band must rise above`));
  replace(svg, parts, series, x, (p) => `${p.users} ${unitName(unit, p.users)}: ${signedPercent(p.net)} (${signedPercent(p.low)} to ${signedPercent(p.high)})`, startedAt, unit);
}

/** Draw both e-values against the threshold they must reach. */
export function drawEvidence(svg, series, { startedAt, threshold, unit }) {
  const logs = series.flatMap((p) => [Math.log10(p.e), Math.log10(p.e_inferior)]).filter(Number.isFinite);
  const enough = Math.log10(threshold);
  const top = Math.min(enough + 2, Math.max(enough + 0.35, ...logs)); // far beyond enough, how far does not matter
  const bottom = Math.max(-3, Math.min(-1, ...logs));
  const x = timeScale(series, startedAt);
  const y = linear(bottom, top, HEIGHT - EDGE.bottom, EDGE.top);
  const at = (e) => y(Math.min(top, Math.max(bottom, Math.log10(Math.max(e, 1e-9)))));
  const ticks = [];
  const stride = Math.max(1, Math.ceil((top - bottom) / 5));
  for (let v = Math.ceil(bottom); v <= top; v += stride) ticks.push(v);

  const parts = [...grid(ticks, y, (v) => (v < 0 ? (10 ** v).toFixed(-v) : evidence(10 ** v))), ...timeAxis(series, x, startedAt)];
  parts.push(line("threshold", at(threshold)), label("threshold-label", EDGE.left + 6, at(threshold) - 6, `${evidence(threshold)} · enough to decide`));
  if (series.length) {
    const last = series.at(-1);
    parts.push(path("inferior", series, (p) => x(p.at), (p) => at(p.e_inferior)), dot("inferior-dot", x(last.at), at(last.e_inferior)));
    parts.push(path("superior", series, (p) => x(p.at), (p) => at(p.e)), dot("superior-dot", x(last.at), at(last.e)));
  }
  replace(svg, parts, series, x, (p) => `${p.users} ${unitName(unit, p.users)}: better ${evidence(p.e)}, worse ${evidence(p.e_inferior)}`, startedAt, unit);
}

function replace(svg, parts, series, x, describe, startedAt, unit) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const summary = series.length ? describe(series.at(-1)) : `no ${unit} has entered yet`;
  svg.setAttribute("aria-label", `${svg.dataset.name}: ${summary}`);
  if (!series.length) parts.push(label("empty", WIDTH / 2, HEIGHT / 2 - 26, `No ${unit} has entered the evidence yet`, "middle"));
  const readout = label("readout", WIDTH - EDGE.right - 2, EDGE.top + 8, "", "end");
  const cursor = makeSvg("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
  parts.push(cursor, readout);
  svg.replaceChildren(...parts);

  const show = () => {
    const pointer = svg.pointerX;
    if (pointer === undefined || !series.length) {
      cursor.setAttribute("visibility", "hidden");
      readout.textContent = "";
      return;
    }
    const box = svg.getBoundingClientRect();
    const wanted = ((pointer - box.left) / box.width) * WIDTH;
    const point = series.reduce((best, p) => (Math.abs(x(p.at) - wanted) < Math.abs(x(best.at) - wanted) ? p : best));
    cursor.setAttribute("x1", x(point.at));
    cursor.setAttribute("x2", x(point.at));
    cursor.setAttribute("visibility", "visible");
    readout.textContent = `${duration(point.at - startedAt)}: ${describe(point)}`;
  };
  svg.onpointermove = (event) => {
    svg.pointerX = event.clientX;
    show();
  };
  svg.onpointerleave = () => {
    delete svg.pointerX;
    show();
  };
  show();
}

const linear = (from, to, low, high) => (value) => low + ((value - from) / (to - from || 1)) * (high - low);
const clamp = (value, bound) => Math.max(-bound, Math.min(bound, value));

function timeScale(series, startedAt) {
  const end = Math.max(startedAt + 10, series.at(-1)?.at ?? 0);
  return linear(startedAt, end, EDGE.left, WIDTH - EDGE.right);
}

function grid(ticks, y, format) {
  return ticks.flatMap((value) => [line("grid", y(value)), label("tick", EDGE.left - 8, y(value) + 4, format(value), "end")]);
}

function timeAxis(series, x, startedAt) {
  const end = Math.max(startedAt + 10, series.at(-1)?.at ?? 0);
  return [0, 0.5, 1].map((share) => {
    const at = startedAt + share * (end - startedAt);
    return label("tick", x(at), HEIGHT - 8, share ? duration(at - startedAt) : "start", share === 1 ? "end" : share ? "middle" : "start");
  });
}

const line = (name, y) => makeSvg("line", { class: name, x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y, y2: y });
const label = (name, x, y, text, anchor = "start") => makeSvg("text", { class: name, x, y, "text-anchor": anchor }, text);
const dot = (name, cx, cy) => makeSvg("circle", { class: name, cx, cy, r: 3.5 });
const path = (name, series, x, y) => makeSvg("polyline", { class: `curve ${name}`, points: series.map((p) => `${x(p)},${y(p)}`).join(" ") });
