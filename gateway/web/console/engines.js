// The engines' page: how each does, what it serves, and the gateways that share the database.

import { byId, make, replaceChanged, setText } from "../dom.js";
import { count } from "../format.js";
import { call, startPage } from "./session.js";
import { makeRow, note, orEmpty, pill } from "./table.js";

startPage(look, { pollMs: 2000 });

async function look() {
  const [{ data, wanted }, status] = await Promise.all([call("engines"), call("status")]);
  const stable = status.stable?.id;
  const canary = status.rollout?.checkpoint;
  const numUp = data.filter(({ up }) => up).length;
  const swap = status.swap.last_swap_s;
  setText(byId("engines-summary"), `${count(numUp)} of ${count(data.length)} up.${swap ? ` The last load of a checkpoint took ${swap.toFixed(2)} s.` : ""}`);
  replaceChanged(byId("engines"), orEmpty(data.map((engine) => showEngine(engine, stable, canary)), 4, "No engine is known."));
  byId("wanted-part").hidden = !wanted.length;
  replaceChanged(byId("wanted"), wanted.map((model) => {
    const its = data.filter(({ checkpoint }) => checkpoint === model.checkpoint);
    return makeRow({}, make("code", {}, model.checkpoint), pill(model.status), its.map(({ url }) => url).join(", ") || "none yet", make("code", {}, model.path));
  }));
  replaceChanged(byId("gateways"), orEmpty(status.gateways.map((gateway) => makeRow({}, make("code", {}, gateway.id), { number: count(gateway.generation) },
    Object.entries(gateway.in_flight).map(([name, number]) => `${name}: ${count(number)}`).join(", ") || "none")), 3, "No gateway reports."));
}

function showEngine(engine, stable, canary) {
  const { text, tone, more } = describeState(engine);
  const roles = engine.proven.map((name) => `${name}${name === stable ? " (stable)" : name === canary ? " (canary)" : ""}`);
  const loading = engine.adapters.filter((name) => !engine.proven.includes(name));
  return makeRow({}, [make("code", {}, engine.url), note([engine.checkpoint ? `holds the whole model ${engine.checkpoint}` : "takes adapters",
    engine.source.startsWith("dns+") ? `found by ${engine.source}` : ""].filter(Boolean).join("; "))],
    [pill(text, tone), note(more)], [roles.join(", ") || "nothing proven", note(loading.length ? `there, not proven: ${loading.join(", ")}` : "")],
    { number: count(engine.in_flight) });
}

/** How an engine does: up, down, hung, resting, withdrawn. */
function describeState({ up, is_hung, is_withdrawn, breaker }) {
  if (is_withdrawn) return { text: "withdrawn", tone: "wait", more: "Nothing more goes there" };
  if (!up) return { text: "down", tone: "bad", more: "It does not answer" };
  if (is_hung) return { text: "hung", tone: "bad", more: "It takes requests and answers none" };
  if (breaker !== "closed") return { text: "resting", tone: "wait", more: `Its breaker is ${breaker}: it failed too often` };
  return { text: "up", tone: "good", more: "" };
}
