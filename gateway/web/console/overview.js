// The overview: the loop at a glance.

import { byId, make, replaceChanged, setText } from "../dom.js";
import { count, evidence, percent, phaseName, toneOf } from "../format.js";
import { describeProgress } from "../learning_words.js";
import { describeLoop, listNext, listProblems } from "./overview_words.js";
import { call, now, startPage, whoIsIn } from "./session.js";

const FEEDBACK_EVERY_LOOKS = 10;

let numLooks = 0;
let days = [];

startPage(look, { pollMs: 1500 });

async function look() {
  const [status, learning] = await Promise.all([call("status"), call("learning")]);
  if (numLooks % FEEDBACK_EVERY_LOOKS === 0) ({ days } = await call("feedback"));
  numLooks += 1;
  showHead(status, learning);
  showServing(status);
  showLearning(learning);
  showCanary(status.rollout);
}

function showHead(status, learning) {
  const { rollout } = status;
  setText(byId("phase"), rollout ? phaseName(rollout.phase) : status.stable ? "No rollout" : "Starting");
  byId("phase").className = `pill ${toneOf(rollout?.phase)}`;
  setText(byId("policy"), `policy ${status.policy}`);
  setText(byId("preset"), `Preset: ${status.preset || "default"}`);
  setText(byId("headline"), describeLoop(status));
  const rows = listNext(status, learning, whoIsIn(), now());
  showNext(rows);
  const problems = listProblems(status, learning);
  byId("problems-part").hidden = !problems.length;
  replaceChanged(byId("problems"), problems.map((text) => make("li", {}, text)));
}

/** Times change all the time: only the words are set, so that the focus stays on a link. */
function showNext(rows) {
  const list = byId("next");
  while (list.children.length > rows.length) list.lastElementChild.remove();
  while (list.children.length < rows.length) list.append(make("li", {}, make("a", { class: "what" }), make("span", { class: "when" }), make("span", { class: "muted" })));
  rows.forEach(({ what, when, who, href }, i) => {
    const [link, ...others] = list.children[i].children;
    if (href) link.setAttribute("href", href);
    else link.removeAttribute("href");
    [what, when, who].forEach((text, j) => setText([link, ...others][j], text));
  });
}

function showServing({ counters, engines }) {
  const { requests, failed_requests: failed, comparisons, choices, outbox_pending: waiting, not_paired } = counters;
  setText(byId("requests"), count(requests));
  setText(byId("requests-more"), `${count(failed)} failed, since this gateway started; ${count(engines.filter(({ up }) => up).length)} of ${count(engines.length)} engines up`);
  setText(byId("asks"), count(comparisons));
  const [most] = Object.entries(not_paired).sort(([, a], [, b]) => b - a);
  setText(byId("asks-more"), `${percent(requests ? comparisons / requests : null)} of requests${most ? `; most others: ${most[0]}` : ""}`);
  setText(byId("choices"), count(choices));
  const today = days.at(-1);
  setText(byId("choices-more"), `${today ? `${count(today.choices)} of ${count(today.comparisons)} asks answered today; ` : ""}${count(waiting)} wait for the log`);
}

function showLearning({ problem, trainer }) {
  const reward = trainer?.reward;
  setText(byId("accuracy"), reward?.num_foreseen ? percent(reward.prequential_accuracy) : "–");
  setText(byId("accuracy-more"), !trainer ? problem : reward.num_foreseen
    ? `of the last ${count(reward.num_foreseen)} choices foreseen; version ${reward.version_in_use} in use`
    : "No choice has been foreseen yet");
  setText(byId("round"), !trainer ? "–" : trainer.round.number === null ? "None yet" : `${trainer.round.number}: ${trainer.round.state}`);
  const { share, text } = describeProgress({ trainer, trial: null });
  byId("round-meter").value = share;
  setText(byId("round-more"), text);
}

function showCanary(rollout) {
  const seen = rollout?.evidence;
  setText(byId("canary"), rollout ? percent(rollout.weight) : "None");
  byId("canary-meter").value = seen ? Math.max(0, Math.min(1, Math.log(Math.max(seen.e, 1)) / Math.log(seen.threshold))) : 0;
  setText(byId("canary-more"), rollout
    ? `${rollout.weight_of === "old" ? "for the old one; " : ""}evidence ${evidence(seen.e)} of ${evidence(seen.threshold)} from ${count(seen.users)} ${seen.unit}s`
    : "The next checkpoint starts a rollout");
}
