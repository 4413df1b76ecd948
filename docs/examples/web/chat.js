// The page of the example apps: keeps the conversation, lets <prefloop-compare> show each answer, and takes thumbs.

const [messages, composer, question] = ["messages", "composer", "question"].map((id) => document.getElementById(id));
const conversation = crypto.randomUUID();
const history = []; // what the model sees next: {role, content}
let latest = null;

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (latest?.state === "writing") return;
  latest?.close(); // going on without a choice: the first answer stays
  if (history.at(-1)?.role === "user") history.pop(); // its answer failed
  history.push({ role: "user", content: question.value });
  messages.append(Object.assign(document.createElement("p"), { className: "question", textContent: question.value }));
  question.value = "";
  showAnswer();
});

function showAnswer() {
  const compare = document.createElement("prefloop-compare");
  const answer = { role: "assistant", content: "" };
  compare.addEventListener("prefloop-answer", ({ detail }) => {
    answer.content = detail.text;
    history.push(answer);
    if (!detail.comparison && detail.id) compare.after(makeThumbs(detail.id));
  });
  compare.addEventListener("prefloop-choice", ({ detail }) => (answer.content = detail.text)); // the chosen one goes on
  latest = compare;
  messages.append(compare);
  compare.load("/chat", post({ conversation, messages: history }));
}

/** Thumbs for an answer that came alone. */
function makeThumbs(completion) {
  const thumbs = Object.assign(document.createElement("div"), { className: "thumbs" });
  for (const [thumb, face, label] of [["up", "👍", "Good answer"], ["down", "👎", "Bad answer"]]) {
    const button = Object.assign(document.createElement("button"), { textContent: face, ariaLabel: label });
    button.addEventListener("click", async () => {
      const { ok } = await fetch("/thumb", post({ completion, thumb }));
      thumbs.textContent = ok ? "Thank you." : "That could not be saved.";
    });
    thumbs.append(button);
  }
  return thumbs;
}

function post(body) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}
