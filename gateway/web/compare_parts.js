// What <prefloop-compare> is made of: two cards, the buttons, a line that tells how it stands, and a box for what went wrong.
// Names and roles are for screen readers as much as for eyes; nothing here is alive, compare.js moves it.

/** Each choice and its key. The keys work while the focus is inside the element, nowhere else. */
export const KEYS = { first: "1", second: "2", tie: "t", both_bad: "b", skip: "s" };

/** The key of the report button, which says of any choice that an answer is harmful. */
export const REPORT_KEY = "h";

/** Build the elements and return those that change later; `group` holds them all. */
export function buildParts(words) {
  const cards = words.answers.map((name) => {
    const badge = make("span", { class: "badge", part: "badge", hidden: "" }, words.picked);
    const heading = make("h2", { part: "heading", hidden: "" }, name, badge);
    const text = document.createTextNode("");
    // A live region around the element must not read every word as it comes.
    const body = make("div", { class: "text", part: "text", dir: "auto", "aria-live": "off" }, text);
    return { article: make("article", { part: "answer" }, heading, body), heading, badge, text };
  });
  cards[1].article.hidden = true;
  const answers = make("div", { class: "answers" }, ...cards.map(({ article }) => article));
  const status = make("p", { class: "status quiet", part: "status", role: "status" });
  const buttons = Object.entries(KEYS).map(([preferred, key]) => {
    const kind = preferred === "first" || preferred === "second" ? "pick" : "";
    const hint = make("kbd", { "aria-hidden": "true" }, key);
    const attributes = { type: "button", value: preferred, class: kind, part: "button", "aria-keyshortcuts": key };
    return make("button", attributes, words.buttons[preferred], hint);
  });
  const report = make("button", { type: "button", class: "report", part: "button report", "aria-pressed": "false", "aria-keyshortcuts": REPORT_KEY }, words.report, make("kbd", { "aria-hidden": "true" }, REPORT_KEY));
  const choices = make("div", { class: "choices", part: "choices", role: "group", "aria-label": words.question, hidden: "" }, ...buttons, report);
  const alert = make("span", { part: "error", role: "alert" });
  const retry = make("button", { type: "button", part: "button" }, words.retry);
  const failure = make("div", { class: "failure", part: "failure", hidden: "" }, alert, retry);
  const group = make("div", { role: "group", tabindex: "-1" }, answers, status, choices, failure);
  return { group, answers, cards, status, choices, buttons, report, failure, alert, retry };
}

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
