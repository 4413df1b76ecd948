// <prefloop-compare>: two candidates side by side, and the buttons to choose one. One file, no dependency, any page.
//
// The page streams both answers from its own back end and feeds them in; the element posts the choice to the gateway with the
// comparison token, which alone authorises it: no key ever enters the browser. Text goes in as text, never as markup.
//
//   const compare = document.createElement("prefloop-compare");
//   compare.endpoint = "https://gateway.example";      // where choices go; the page's own origin by default
//   compare.append(0, "text …"); compare.append(1, "text …");
//   compare.ask({ id, token, expires_at });            // the stream's `comparison`: the buttons wake up
//   compare.addEventListener("prefloop-choice", (event) => event.detail);   // { preferred, index, text, recorded }

const VERDICTS = [
  { preferred: "first", label: "First is better", key: "1" },
  { preferred: "second", label: "Second is better", key: "2" },
  { preferred: "tie", label: "Tie", key: "3" },
  { preferred: "both_bad", label: "Both bad", key: "4" },
  { preferred: "skip", label: "Skip", key: "0" },
];

const STYLE = `
:host { display: block; --_accent: var(--accent, light-dark(#4f46e5, #8b85ff)); --_on-accent: var(--on-accent, light-dark(#fff, #12131a));
  --_surface: var(--surface, light-dark(#fff, #171a21)); --_line: var(--line, light-dark(#dfe3ea, #2b313c));
  --_muted: var(--muted, light-dark(#5b6472, #9aa4b4)); --_soft: var(--accent-soft, light-dark(#eceafd, #262547));
  --_bad: var(--bad, light-dark(#b91c2e, #ff7a86)); font: inherit; }
* { box-sizing: border-box; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; align-items: stretch; }
article { position: relative; display: flex; flex-direction: column; background: var(--_surface); border: 1.5px solid var(--_line);
  border-radius: 14px; padding: 12px 16px 14px; transition: border-color .15s, opacity .15s; min-width: 0;
  box-shadow: 0 1px 2px rgb(15 17 21 / 5%), 0 6px 24px rgb(15 17 21 / 6%); }
h3 { margin: 0 0 6px; font-size: 12.5px; font-weight: 600; letter-spacing: .02em; color: var(--_muted); display: flex; gap: 8px; align-items: center; }
h3 .badge { display: none; background: var(--_accent); color: var(--_on-accent); border-radius: 999px; padding: 0 9px; font-size: 11.5px; line-height: 18px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; flex: 1; }
.text.writing::after { content: ""; display: inline-block; width: 7px; height: 1em; margin-left: 2px; vertical-align: -2px; border-radius: 2px;
  background: var(--_accent); animation: blink 1s steps(2) infinite; }
@keyframes blink { 50% { opacity: 0; } }
.verdicts { margin-top: 12px; display: flex; flex-wrap: wrap; gap: 8px; align-items: center; justify-content: center; }
button { font: inherit; font-size: 14px; font-weight: 550; min-height: 36px; padding: 5px 14px; border-radius: 10px; cursor: pointer;
  border: 1px solid var(--_line); background: var(--_surface); color: inherit; transition: background .12s, border-color .12s; }
button.pick { border-color: var(--_accent); color: var(--_accent); }
button:hover:not(:disabled), button.pick:hover:not(:disabled) { background: var(--_soft); border-color: var(--_accent); }
button:disabled { opacity: .45; cursor: default; }
button:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px; }
kbd { font: 11px ui-monospace, "DejaVu Sans Mono", monospace; color: var(--_muted); border: 1px solid var(--_line); border-radius: 5px; padding: 0 5px; margin-left: 7px; }
.status { width: 100%; text-align: center; font-size: 13px; color: var(--_muted); min-height: 1.5em; margin: 0; }
.status.failed { color: var(--_bad); }
:host([state="chosen"]) .verdicts > button { display: none; }
article.picked { border-color: var(--_accent); background: color-mix(in srgb, var(--_soft) 55%, var(--_surface)); }
article.picked .badge { display: inline; }
article.left { opacity: .55; box-shadow: none; }
@media (max-width: 640px) { .pair { grid-template-columns: 1fr; } kbd { display: none; } }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
`;

const SAID = {
  first: "Thank you. You preferred the first answer.",
  second: "Thank you. You preferred the second answer.",
  tie: "Thank you. You called it a tie.",
  both_bad: "Thank you. Neither was good.",
  skip: "Skipped.",
};

export class PrefloopCompare extends HTMLElement {
  #texts = ["", ""];
  #cards = [];
  #buttons = [];
  #status;
  #comparison = null;
  #startedAt = 0;
  endpoint = "";

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];

    const pair = make("div", { class: "pair" });
    this.#cards = ["First answer", "Second answer"].map((name) => makeCard(name));
    pair.append(...this.#cards.map((card) => card.article));
    this.#status = make("p", { class: "status", role: "status" });
    this.#buttons = VERDICTS.map((verdict) => this.#makeButton(verdict));
    const verdicts = make("div", { class: "verdicts", role: "group", "aria-label": "Which answer is better?" });
    verdicts.append(this.#status, ...this.#buttons);
    root.append(pair, verdicts);
    this.addEventListener("keydown", (event) => this.#onKey(event));
  }

  connectedCallback() {
    if (!this.hasAttribute("state")) this.#setState("writing", "Two answers are being written…");
    this.endpoint ||= this.getAttribute("endpoint") ?? "";
  }

  /** The text of a candidate so far. */
  textOf(index) {
    return this.#texts[index];
  }

  /** Add streamed text to candidate 0 (first) or 1 (second). */
  append(index, text) {
    this.#texts[index] += text;
    this.#cards[index].text.textContent = this.#texts[index];
  }

  /** Both answers are complete: let the person choose. comparison: {id, token, expires_at}. */
  ask(comparison) {
    this.#comparison = comparison;
    this.#startedAt = performance.now();
    this.#setState("asking", "Which answer is better?");
  }

  /** No question any more (the person went on without choosing): the first candidate stays. */
  close(reason = "Went on without choosing: the first answer stays.") {
    if (this.getAttribute("state") === "chosen") return;
    this.#mark(0);
    this.#setState("chosen", reason);
  }

  /** Record a verdict; the buttons call this. Resolves to true when the gateway has stored it. */
  async choose(preferred) {
    if (this.getAttribute("state") !== "asking") return false;
    this.#setState("sending", "Saving your choice…");
    const index = preferred === "second" ? 1 : 0;
    const { id, token } = this.#comparison;
    let failure;
    try {
      const response = await fetch(`${this.endpoint}/v1/comparisons/${encodeURIComponent(id)}/choice`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        credentials: "omit",
        body: JSON.stringify({ preferred, token }),
      });
      if (!response.ok) failure = await describe(response);
    } catch {
      failure = { text: "Your choice could not be sent. Check the connection and try again.", retry: true };
    }
    if (failure?.retry) {
      this.#setState("asking", failure.text, true);
      this.#buttons[0].focus();
      return false;
    }
    this.#mark(preferred === "first" || preferred === "second" ? index : null);
    this.#setState("chosen", failure?.text ?? SAID[preferred], Boolean(failure));
    const seconds = (performance.now() - this.#startedAt) / 1000;
    const detail = { preferred, index, text: this.#texts[index], recorded: !failure, seconds };
    this.dispatchEvent(new CustomEvent("prefloop-choice", { detail, bubbles: true, composed: true }));
    return !failure;
  }

  /** Choose by a key of the keyboard: 1, 2, 3 tie, 4 both bad, 0 skip. Returns whether the key means something. */
  chooseByKey(key) {
    const verdict = VERDICTS.find((each) => each.key === key);
    if (verdict) this.choose(verdict.preferred);
    return Boolean(verdict);
  }

  #mark(index) {
    this.#cards.forEach((card, i) => {
      card.article.classList.toggle("picked", i === index);
      card.article.classList.toggle("left", index !== null && i !== index);
    });
  }

  #setState(state, text, failed = false) {
    this.setAttribute("state", state);
    this.#status.textContent = text;
    this.#status.classList.toggle("failed", failed);
    for (const button of this.#buttons) button.disabled = state !== "asking";
    for (const card of this.#cards) card.text.classList.toggle("writing", state === "writing");
  }

  #makeButton({ preferred, label, key }) {
    const button = make("button", { type: "button", value: preferred, "aria-keyshortcuts": key });
    if (preferred === "first" || preferred === "second") button.className = "pick";
    const hint = make("kbd", { "aria-hidden": "true" });
    hint.textContent = key;
    button.append(label, hint);
    button.addEventListener("click", () => this.choose(preferred));
    return button;
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.chooseByKey(event.key)) event.preventDefault();
  }
}

function make(tag, attributes) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function makeCard(name) {
  const article = make("article", { "aria-label": name });
  const heading = make("h3", {});
  const badge = make("span", { class: "badge" });
  badge.textContent = "Your pick";
  heading.append(name, badge);
  const text = make("div", { class: "text" });
  article.append(heading, text);
  return { article, text };
}

/** Say kindly why a choice was not stored, and whether trying again can help. */
async function describe(response) {
  if (response.status === 410) return { text: "This question has expired, so your choice was not counted.", retry: false };
  if (response.status === 409) return { text: "A different choice was already stored for these answers.", retry: false };
  if (response.status === 404) return { text: "The gateway does not know this question any more.", retry: false };
  if (response.status >= 500 || response.status === 429) return { text: "Your choice could not be saved yet. Please try again.", retry: true };
  const body = await response.json().catch(() => null);
  return { text: body?.error?.message ?? "Your choice was not accepted.", retry: false };
}

if (!customElements.get("prefloop-compare")) customElements.define("prefloop-compare", PrefloopCompare);
