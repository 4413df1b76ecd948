// <prefloop-compare>: shows an answer as it is written; if it is two candidates, side by side, with buttons to choose one.
// For any page: no dependency, no key in the browser, text never parsed as markup. Its manual is docs/apps.md.
//
// Attributes: src (the app's own back end, streamed by GET as soon as it is set), gateway (where choices go; default: where this
// file came from), state (read only: idle, writing, asking, sending, chosen, done, failed), pair (read only: two are shown).
// Methods: load(input, init) with fetch's arguments, stop(), retry(), choose(preferred), close(). Properties: texts; harmful,
// whether the choice, whichever it is, reports harm: the report button turns it on and off.
// Events, all bubbling: prefloop-state {state}; prefloop-answer {id, text, texts, comparison, stopped};
// prefloop-choice {preferred, harmful, index, text, recorded, seconds}; prefloop-error {during, message, reason, status, code, said}.

import { sendChoice } from "./compare_choice.js";
import { KEYS, REPORT_KEY, buildParts } from "./compare_parts.js";
import { AnswerError, readAnswer } from "./compare_stream.js";
import { shareSheet } from "./compare_style.js";
import { WORDS } from "./compare_words.js";

export class PrefloopCompare extends HTMLElement {
  static observedAttributes = ["src"];
  /** What the element says; pages in other languages replace it. */
  static words = WORDS;

  #words = PrefloopCompare.words;
  #parts = buildParts(PrefloopCompare.words);
  #request = null; // [input, init] of the last load
  #running = null; // AbortController while an answer is read
  #comparison = null; // {id, token}
  #askedAt = 0;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [shareSheet()];
    root.append(this.#parts.group);
    for (const button of this.#parts.buttons) button.addEventListener("click", () => this.choose(button.value));
    this.#parts.report.addEventListener("click", () => this.#toggleReport());
    this.#parts.retry.addEventListener("click", () => this.retry());
    this.#parts.group.addEventListener("keydown", (event) => this.#onKey(event));
  }

  connectedCallback() {
    for (const name of ["src", "gateway"]) {
      if (!Object.hasOwn(this, name)) continue; // was set before this file had come
      const value = this[name];
      delete this[name];
      this[name] = value;
    }
    if (!this.hasAttribute("state")) this.setAttribute("state", "idle");
    if (this.src && this.state === "idle") this.load(this.src);
  }

  disconnectedCallback() {
    queueMicrotask(() => {
      if (this.isConnected || !this.#running) return; // it was only moved, or has nothing to stop
      this.#running.abort();
      this.#running = null;
      this.setAttribute("state", "idle");
    });
  }

  attributeChangedCallback(_, before, src) {
    if (this.isConnected && src && src !== before) this.load(src);
  }

  get src() {
    return this.getAttribute("src") ?? "";
  }

  set src(url) {
    this.setAttribute("src", url);
  }

  get gateway() {
    return this.getAttribute("gateway") ?? new URL("..", import.meta.url).href;
  }

  set gateway(url) {
    this.setAttribute("gateway", url);
  }

  get state() {
    return this.getAttribute("state") ?? "idle";
  }

  /** What is shown so far: one text, or two in their order. */
  get texts() {
    return this.#parts.cards.filter(({ article }) => !article.hidden).map(({ text }) => text.data);
  }

  /** Whether the choice will report harm. */
  get harmful() {
    return this.#parts.report.getAttribute("aria-pressed") === "true";
  }

  set harmful(isHarmful) {
    const { report, buttons } = this.#parts;
    report.setAttribute("aria-pressed", String(Boolean(isHarmful)));
    buttons.at(-1).firstChild.data = isHarmful ? this.#words.reportOnly : this.#words.buttons.skip;
  }

  /** Ask the app's back end, with fetch's arguments, and show what it streams. Resolves when that is over, well or badly. */
  async load(input, init = {}) {
    this.#running?.abort();
    const running = new AbortController();
    this.#running = running;
    this.#request = [input, init];
    this.#clear();
    this.#setState("writing", this.#words.writing, true);
    const signal = init.signal ? AbortSignal.any([running.signal, init.signal]) : running.signal;
    try {
      const response = await fetchAnswer(input, { ...init, signal });
      const answer = await readAnswer(response, (index, text) => signal.aborted || this.#append(index, text));
      if (this.#running === running) this.#finish(answer);
    } catch (error) {
      if (this.#running !== running) return; // it was stopped, or another answer took its place
      if (signal.aborted) this.stop();
      else this.#fail(error);
    }
  }

  /** Stop writing. What there is of the first answer stays. */
  stop() {
    if (!this.#running) return;
    this.#running.abort();
    if (this.texts[0]) this.#finish({ id: null, comparison: null }, true);
    else this.#fail(new AnswerError("stopped"));
  }

  /** Ask the same again. */
  async retry() {
    this.#keepPlace();
    if (this.#request) await this.load(...this.#request);
  }

  /** The person went on: nothing to choose, nothing to try again. The first answer stays. */
  close() {
    this.#parts.retry.hidden = true;
    if (this.state !== "asking") return;
    this.#mark(0, false);
    this.#showFailure("");
    this.#setState("done", this.#words.closed);
  }

  /** Send a choice; the buttons call this. Resolves to whether the gateway has stored it. */
  async choose(preferred) {
    if (this.state !== "asking" || !Object.hasOwn(KEYS, preferred)) return false;
    const seconds = (performance.now() - this.#askedAt) / 1000;
    const { harmful } = this;
    this.#showFailure("");
    this.#setState("sending", this.#words.sending);
    const body = { preferred, token: this.#comparison.token, ...(harmful && { harmful }) };
    const problem = await sendChoice(this.gateway, this.#comparison.id, body, this.#words);
    if (problem?.canRetry) {
      this.#setState("asking", this.#words.asking);
      this.#showFailure(problem.message);
      this.#emit("prefloop-error", { during: "choice", reason: "unsaved", ...problem });
      return false;
    }
    const index = preferred === "second" ? 1 : 0;
    const isDecisive = preferred === "first" || preferred === "second";
    this.#keepPlace();
    this.#mark(isDecisive ? index : null, isDecisive);
    const thanks = harmful ? this.#words.reported : this.#words.thanks[preferred];
    this.#setState("chosen", problem?.message ?? thanks);
    this.#emit("prefloop-choice", { preferred, harmful, index, text: this.texts[index], recorded: !problem, seconds });
    return !problem;
  }

  #append(index, text) {
    if (index === 1 && !this.hasAttribute("pair")) this.#showPair();
    this.#parts.cards[index].text.appendData(text);
  }

  #showPair() {
    this.#togglePair(true);
    this.#say(this.#words.writingTwo);
  }

  #finish({ id, comparison }, stopped = false) {
    this.#running = null;
    const [first, second] = this.#parts.cards;
    const isAsked = comparison !== null && Boolean(first.text.data || second.text.data);
    this.#togglePair(isAsked);
    this.#comparison = comparison;
    this.#askedAt = performance.now();
    for (const text of [first.text, second.text]) if (!text.data) text.parentElement.dataset.empty = this.#words.empty;
    if (isAsked) this.#setState("asking", this.#words.asking);
    else this.#setState("done", stopped ? this.#words.stopped : this.#words.complete, !stopped);
    const texts = this.texts;
    this.#emit("prefloop-answer", { id, text: texts[0], texts, comparison: isAsked ? comparison : null, stopped });
  }

  #fail(error) {
    this.#running = null;
    if (!(error instanceof AnswerError)) reportError(error); // a mistake of ours: shown as a broken answer, and not hidden
    const { reason = "broken", status = null, code = null, said = null } = error;
    const message = (reason === "refused" && said) || this.#words.failures[reason] || this.#words.failures.broken;
    this.#setState("failed", "", true);
    if (this.#emit("prefloop-error", { during: "answer", message, reason, status, code, said })) this.#showFailure(message, true);
  }

  #clear() {
    for (const { text } of this.#parts.cards) {
      text.data = "";
      delete text.parentElement.dataset.empty;
    }
    this.#comparison = null;
    this.harmful = false;
    this.#mark(null, false);
    this.#togglePair(false);
    this.#showFailure("");
  }

  #togglePair(isPair) {
    this.toggleAttribute("pair", isPair);
    this.#parts.group.setAttribute("aria-label", isPair ? this.#words.pair : this.#words.answer);
    this.#parts.cards[1].article.hidden = !isPair;
    for (const { heading } of this.#parts.cards) heading.hidden = !isPair;
  }

  /** Show which one stays (null: no one stands out), and whether it was picked. */
  #mark(kept, isPicked) {
    this.#parts.cards.forEach(({ article, badge }, index) => {
      article.classList.toggle("picked", isPicked && index === kept);
      article.classList.toggle("left", kept !== null && index !== kept);
      badge.hidden = !isPicked || index !== kept;
    });
  }

  #setState(state, text, isQuiet = false) {
    const { answers, choices, buttons, report } = this.#parts;
    this.setAttribute("state", state);
    this.#say(text, isQuiet);
    answers.setAttribute("aria-busy", String(state === "writing"));
    answers.classList.toggle("writing", state === "writing");
    choices.hidden = state !== "asking" && state !== "sending";
    for (const button of [...buttons, report]) button.setAttribute("aria-disabled", String(state !== "asking"));
    this.#emit("prefloop-state", { state });
  }

  #toggleReport() {
    if (this.state !== "asking") return;
    this.harmful = !this.harmful;
    this.#say(this.harmful ? this.#words.reporting : this.#words.asking);
  }

  #say(text, isQuiet = false) {
    this.#parts.status.textContent = text;
    this.#parts.status.classList.toggle("quiet", isQuiet || !text);
  }

  #showFailure(message, canRetry = false) {
    const { failure, alert, retry } = this.#parts;
    failure.hidden = !message;
    alert.textContent = message;
    retry.hidden = !canRetry;
  }

  /** What is about to vanish may hold the focus: a keyboard's place must not be lost. */
  #keepPlace() {
    if (this.shadowRoot.activeElement) this.#parts.group.focus();
  }

  #onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (this.state !== "asking") return;
    const typed = /^(Digit|Numpad)[12]$/.test(event.code) ? event.code.at(-1) : event.key.toLowerCase();
    const preferred = Object.keys(KEYS).find((each) => KEYS[each] === typed);
    if (typed === REPORT_KEY && !event.repeat) this.#toggleReport();
    else if (preferred && !event.repeat) this.choose(preferred);
    else if (!this.#moveFocus(event.key)) return;
    event.preventDefault();
  }

  #moveFocus(key) {
    const buttons = [...this.#parts.buttons, this.#parts.report];
    const at = buttons.indexOf(this.shadowRoot.activeElement);
    if (at < 0) return false;
    const right = getComputedStyle(this).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: right, ArrowLeft: -right, ArrowDown: 1, ArrowUp: -1, Home: -at, End: -1 - at };
    if (!Object.hasOwn(steps, key)) return false;
    buttons.at((at + steps[key]) % buttons.length).focus();
    return true;
  }

  #emit(name, detail) {
    return this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true, cancelable: name === "prefloop-error" }));
  }
}

async function fetchAnswer(input, init) {
  const headers = new Headers(init.headers ?? input.headers);
  if (!headers.has("accept")) headers.set("accept", "text/event-stream");
  try {
    return await fetch(input instanceof Request ? input.clone() : input, { cache: "no-store", ...init, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new AnswerError("unreachable");
  }
}

if (!customElements.get("prefloop-compare")) customElements.define("prefloop-compare", PrefloopCompare);
