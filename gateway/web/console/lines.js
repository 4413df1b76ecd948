// A small line plot as SVG: some named lines over one axis, with a readout under the pointer. Colours come from CSS classes.

import { makeSvg } from "../dom.js";

const HEIGHT = 200;
const EDGE = { left: 54, right: 12, top: 14, bottom: 26 };

/** Draw lines: {name, points: [[x, y], …]}. describeX and describeY make labels; empty: what is said without a point. */
export function drawLines(svg, title, lines, { describeX = String, describeY = shorten, empty = "Nothing yet" } = {}) {
  const width = Math.max(280, svg.clientWidth || 560); // as wide as it is shown, so that its words keep their size
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const drawn = lines.map((line) => ({ ...line, points: line.points.filter((point) => point.every(Number.isFinite)) })).filter(({ points }) => points.length);
  const last = drawn.map(({ name, points }) => `${name} ${describeY(points.at(-1)[1])}`).join(", ");
  svg.setAttribute("aria-label", `${title}: ${last || empty.toLowerCase()}`);
  if (!drawn.length) {
    svg.replaceChildren(makeSvg("text", { class: "empty", x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, empty));
    return;
  }
  const all = drawn.flatMap(({ points }) => points);
  const x = scale(all.map(([value]) => value), EDGE.left, width - EDGE.right, 0);
  const y = scale(all.map(([, value]) => value), HEIGHT - EDGE.bottom, EDGE.top, 0.08);
  const parts = [y.low, (y.low + y.high) / 2, y.high].flatMap((value) => [
    makeSvg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }), label(EDGE.left - 8, y(value) + 4, describeY(value), "end"),
  ]);
  parts.push(label(EDGE.left, HEIGHT - 6, describeX(x.low), "start"), label(width - EDGE.right, HEIGHT - 6, describeX(x.high), "end"));
  drawn.forEach(({ points }, i) => {
    parts.push(makeSvg("polyline", { class: `curve line-${i % 4}`, points: points.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
    for (const [a, b] of points.length > 40 ? points.slice(-1) : points) parts.push(makeSvg("circle", { class: `dot line-${i % 4}`, cx: x(a), cy: y(b), r: 3 }));
  });
  const readout = label(width - EDGE.right, EDGE.top - 2, "", "end");
  readout.setAttribute("class", "readout");
  svg.replaceChildren(...parts, readout);
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    const nearest = (points) => points.reduce((best, point) => (Math.abs(x(point[0]) - at) < Math.abs(x(best[0]) - at) ? point : best));
    const found = drawn.map(({ name, points }) => [name, nearest(points)]);
    readout.textContent = `${describeX(found[0][1][0])}: ${found.map(([name, [, value]]) => `${name} ${describeY(value)}`).join(", ")}`;
  };
  svg.onpointerleave = () => {
    readout.textContent = "";
  };
}

/** A figure in at most four digits. */
export function shorten(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

const label = (x, y, text, anchor) => makeSvg("text", { x, y, "text-anchor": anchor }, text);

function scale(values, from, to, margin) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low) * margin || (margin ? Math.abs(high) * 0.1 || 1 : 0);
  [low, high] = [low - room, high + room];
  const place = (value) => (high === low ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));
  return Object.assign(place, { low, high });
}
