// The chat page: keeps the conversation, streams answers, and hands two-candidate answers to <prefloop-compare>.

import "./compare.js";
import { ChatError, streamChat } from "./chat_stream.js";

const NUM_EXAMPLES = 6;
const page = Object.fromEntries(
  ["welcome", "examples", "messages", "composer", "question", "send", "stop", "compare", "new-chat"].map((id) => [id, document.getElementById(id)]),
);

let history = []; // what the model sees next: {role, content}
let conversation = crypto.randomUUID?.() ?? String(Math.random());
let openComparison = null; // {element, answer}: asked and not yet chosen
let running = null; // AbortController of the answer being written

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
page.stop.addEventListener("click", () => running?.abort());
page["new-chat"].addEventListener("click", startOver);
// The comparison's keys (1, 2, 3, 4, 0) work wherever nothing is being typed.
document.addEventListener("keydown", (event) => {
  if (!openComparison || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("input, textarea, select, prefloop-compare")) return;
  openComparison.element.chooseByKey(event.key);
});
showExamples();

async function ask(question) {
  question = question.trim();
  if (!question || running) return;
  settleOpenComparison();
  dropUnanswered();
  page.welcome.hidden = true;
  page.question.value = "";
  fitQuestion();
  addMessage("user", question);
  history.push({ role: "user", content: question });
  await answer();
}

async function answer() {
  const started = conversation;
  const view = new AnswerView();
  setRunning(new AbortController());
  const { signal } = running;
  try {
    const result = await streamChat({
      url: "/playground/chat",
      headers: {
        "x-prefloop-compare": page.compare.value,
        "x-prefloop-user": personId(),
        "x-prefloop-conversation": conversation,
      },
      messages: history,
      signal,
      onText: (index, text) => view.append(index, text),
    });
    if (started === conversation) view.finish(result.comparison);
  } catch (error) {
    if (started !== conversation) return;
    if (error.name === "AbortError") view.stop();
    else view.fail(error instanceof ChatError ? error.message : "Something went wrong on this page.");
    if (!(error instanceof ChatError) && error.name !== "AbortError") console.error(error);
  } finally {
    if (running?.signal === signal) setRunning(null);
  }
}

/** One answer as it is written: a bubble, which becomes a comparison when a second candidate starts. */
class AnswerView {
  constructor() {
    this.texts = ["", ""];
    this.message = document.createElement("div");
    this.message.className = "message assistant";
    this.bubble = document.createElement("div");
    this.bubble.className = "bubble writing";
    this.message.append(this.bubble);
    page.messages.append(this.message);
    this.compare = null;
    scrollDown(true);
  }

  append(index, text) {
    if (index > 1) return;
    this.texts[index] += text;
    if (index === 1 && !this.compare) this.#showPair();
    if (this.compare) this.compare.append(index, text);
    else this.bubble.textContent = this.texts[0];
    scrollDown();
  }

  finish(comparison) {
    if (!comparison || !this.compare) return this.#keepFirst();
    const answer = { role: "assistant", content: this.texts[0] };
    history.push(answer);
    openComparison = { element: this.compare, answer };
    this.compare.addEventListener("prefloop-choice", (event) => {
      answer.content = event.detail.text;
      openComparison = null;
      page.question.focus();
    });
    this.compare.ask(comparison);
    scrollDown();
  }

  stop() {
    if (this.texts[0]) this.#keepFirst("Stopped.");
    else this.fail("Stopped before an answer came.");
  }

  fail(reason) {
    this.bubble.remove();
    this.compare?.remove();
    const box = document.createElement("div");
    box.className = "notice failure";
    box.setAttribute("role", "alert");
    const text = document.createElement("span");
    text.textContent = reason;
    const retry = document.createElement("button");
    retry.type = "button";
    retry.className = "button";
    retry.textContent = "Try again";
    retry.addEventListener("click", () => {
      if (running) return;
      this.message.remove();
      answer();
    });
    box.append(text, retry);
    this.message.append(box);
    scrollDown();
  }

  #showPair() {
    this.bubble.remove();
    this.compare = document.createElement("prefloop-compare");
    this.message.append(this.compare);
    if (this.texts[0]) this.compare.append(0, this.texts[0]);
  }

  #keepFirst(note = "") {
    this.compare?.remove();
    this.compare = null;
    this.bubble.textContent = this.texts[0] || "(The model said nothing.)";
    this.bubble.classList.remove("writing");
    this.message.prepend(this.bubble);
    if (note) addMeta(this.message, note);
    history.push({ role: "assistant", content: this.texts[0] });
  }
}

/** Going on without a choice: the first candidate is what the conversation continues from. */
function settleOpenComparison() {
  openComparison?.element.close();
  openComparison = null;
}

/** A question whose answer failed leaves the history when the person asks another one. */
function dropUnanswered() {
  if (history.at(-1)?.role === "user") history.pop();
  for (const button of page.messages.querySelectorAll(".failure .button")) button.remove();
}

function addMessage(role, text) {
  const message = document.createElement("div");
  message.className = `message ${role}`;
  const bubble = document.createElement("div");
  bubble.className = "bubble";
  bubble.textContent = text;
  message.append(bubble);
  page.messages.append(message);
}

function addMeta(message, text) {
  const meta = document.createElement("span");
  meta.className = "meta";
  meta.textContent = text;
  message.append(meta);
}

function setRunning(controller) {
  running = controller;
  page.stop.hidden = !controller;
  page.send.hidden = Boolean(controller);
  page.messages.setAttribute("aria-busy", String(Boolean(controller)));
}

function startOver() {
  conversation = crypto.randomUUID?.() ?? String(Math.random());
  running?.abort();
  setRunning(null);
  openComparison = null;
  history = [];
  page.messages.replaceChildren();
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

/** A random name for this browser, so that one person's choices count as one person's. The gateway stores only a keyed hash. */
function personId() {
  try {
    let id = localStorage.getItem("prefloop-person");
    if (!id) {
      id = crypto.randomUUID?.() ?? String(Math.random());
      localStorage.setItem("prefloop-person", id);
    }
    return `playground-${id}`;
  } catch {
    return `playground-${conversation}`;
  }
}

function fitQuestion() {
  page.question.rows = Math.min(7, Math.max(1, page.question.value.split("\n").length));
}

/** Follow the text, unless the reader scrolled up. */
function scrollDown(force = false) {
  const root = document.documentElement;
  if (force || root.scrollHeight - root.scrollTop - root.clientHeight < 160) root.scrollTop = root.scrollHeight;
}
