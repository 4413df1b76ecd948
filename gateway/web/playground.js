// The chat page: keeps the conversation; every answer is a <prefloop-compare>, as in any other app. Where one person teaches the
// model, learning.js shows beside it what came of that.

import "./compare.js";
import { look, proposeQuestion, startLearning } from "./learning.js";

const NUM_EXAMPLES = 6;
const page = Object.fromEntries(
  ["welcome", "examples", "messages", "composer", "question", "send", "stop", "compare", "new-chat"].map((id) => [id, document.getElementById(id)]),
);

let history = []; // what the model sees next: {role, content}
let conversation = makeId();
let latest = null; // the element of the last answer
let teaches = false; // whether one person teaches it here

page.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  ask(page.question.value);
});
page.question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask(page.question.value);
});
page.question.addEventListener("input", fitQuestion);
page.stop.addEventListener("click", () => latest?.stop());
page["new-chat"].addEventListener("click", startOver);
followText();
showExamples();
startLearning().then(showTeaching);

function ask(question) {
  question = question.trim();
  if (!question || latest?.state === "writing") return;
  latest?.close(); // going on without a choice: the first candidate is what the conversation continues from
  if (history.at(-1)?.role === "user") history.pop(); // its answer failed
  page.welcome.hidden = true;
  page.question.value = "";
  fitQuestion();
  const bubble = document.createElement("div");
  bubble.className = "bubble";
  bubble.textContent = question;
  addMessage("user", bubble);
  if (teaches) proposeQuestion(question);
  history.push({ role: "user", content: question });
  showAnswer();
}

function showAnswer() {
  const compare = document.createElement("prefloop-compare");
  const answer = { role: "assistant", content: "" };
  compare.addEventListener("prefloop-state", ({ detail }) => showRunning(detail.state === "writing"));
  compare.addEventListener("prefloop-answer", ({ detail }) => {
    answer.content = detail.text;
    history.push(answer);
  });
  compare.addEventListener("prefloop-choice", ({ detail }) => {
    answer.content = detail.text;
    page.question.focus();
    if (teaches) look();
  });
  latest = compare;
  addMessage("assistant", compare);
  scrollDown();
  compare.load("/playground/chat", {
    method: "POST",
    headers: {
      "content-type": "application/json",
      "x-prefloop-compare": page.compare.value,
      "x-prefloop-conversation": conversation,
    },
    body: JSON.stringify({ messages: history }),
  });
}

function showTeaching(isShown) {
  teaches = isShown;
  if (!isShown) return;
  document.body.classList.add("teaches");
  document.getElementById("intro").textContent = "Every question gets two answers. What you pick teaches the model what you like: it trains after every few choices.";
}

function addMessage(role, content) {
  const message = document.createElement("div");
  message.className = `message ${role}`;
  message.append(content);
  page.messages.append(message);
}

function showRunning(isRunning) {
  page.stop.hidden = !isRunning;
  page.send.hidden = isRunning;
}

function startOver() {
  conversation = makeId();
  latest = null;
  history = [];
  page.messages.replaceChildren(); // an element that leaves the page stops its answer
  showRunning(false);
  page.welcome.hidden = false;
  page.question.focus();
}

async function showExamples() {
  const body = await fetch("/playground/examples").then((response) => response.json(), () => null);
  const questions = (body?.data ?? []).map((question) => ({ question, order: Math.random() }));
  questions.sort((a, b) => a.order - b.order);
  for (const { question } of questions.slice(0, NUM_EXAMPLES)) {
    const item = document.createElement("li");
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.textContent = question;
    chip.addEventListener("click", () => ask(question));
    item.append(chip);
    page.examples.append(item);
  }
}

function makeId() {
  return crypto.randomUUID?.() ?? String(Math.random()); // randomUUID is there on https and on this machine only
}

function fitQuestion() {
  page.question.rows = Math.min(7, Math.max(1, page.question.value.split("\n").length));
}

/** Keep the end of the text in view as it grows, unless the reader scrolled up. */
function followText() {
  let height = 0;
  new ResizeObserver(() => {
    const root = document.documentElement;
    const wasAtEnd = height - root.scrollTop - root.clientHeight < 40;
    height = root.scrollHeight;
    if (wasAtEnd) scrollDown();
  }).observe(page.messages);
}

function scrollDown() {
  document.documentElement.scrollTop = document.documentElement.scrollHeight;
}
