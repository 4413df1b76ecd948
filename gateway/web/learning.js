// The panel beside the chat: what the model has learnt of this person, what happens now, a trial to decide, before and after.
// It is shown where the gateway shows it to this machine. No text of a prompt or an answer is in what it polls.

import "./compare.js";
import { make, setText } from "./dom.js";
import { describeGuesses, describeLastRound, describeNow, describeProgress, describeStyle, describeTrial } from "./learning_words.js";

const LOOK_MS = 2500;
const part = Object.fromEntries(
  ["learning", "now", "now-meter", "now-text", "last-round", "trial", "trial-score", "trial-judged", "trial-proof", "keep", "discard", "trial-failure",
    "liked", "liked-none", "guesses", "beside", "beside-question", "beside-ask", "beside-answers", "beside-before", "beside-now"].map((id) => [id, document.getElementById(id)]),
);

let trial = null; // as it is shown: what an approval is of
let looking = 0;

/** Begin to look; resolves when the panel is known to be shown or not. */
export async function startLearning() {
  if (!(await look())) return false;
  part.keep.addEventListener("click", () => decide("approve"));
  part.discard.addEventListener("click", () => decide("abort"));
  part.beside.addEventListener("submit", (event) => {
    event.preventDefault();
    askBeside(part["beside-question"].value.trim());
  });
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && look());
  setInterval(() => document.visibilityState === "visible" && look(), LOOK_MS);
  return true;
}

/** Look now: something was chosen. */
export async function look() {
  const turn = ++looking;
  const seen = await fetch("/playground/learning", { cache: "no-store" }).then((response) => (response.ok ? response.json() : null), () => null);
  if (turn !== looking) return true; // a later look has begun
  if (seen === null) {
    if (!part.learning.hidden) setText(part.now, "The gateway does not answer.");
    return !part.learning.hidden;
  }
  if (seen.operates) show(seen);
  return seen.operates;
}

/** Propose a question of this person's for before and after, unless they wrote one. */
export function proposeQuestion(question) {
  if (!part["beside-question"].value) part["beside-question"].value = question;
}

function show(seen) {
  part.learning.hidden = false;
  setText(part.now, describeNow(seen));
  const { share, text } = describeProgress(seen);
  part["now-meter"].value = share;
  setText(part["now-text"], text);
  setText(part["last-round"], describeLastRound(seen.trainer?.rounds ?? []));
  showTrial(seen.trial);
  if (!seen.trainer) return;
  const liked = describeStyle(seen.trainer.reward.style);
  part["liked-none"].hidden = liked.length > 0;
  const shown = liked.map(({ sure, text: what }) => `${what} (${sure})`);
  if ([...part.liked.children].map((item) => item.textContent).join() !== shown.join()) {
    part.liked.replaceChildren(...liked.map(({ sure, text: what }) => make("li", { class: sure }, what, make("span", { class: "muted" }, ` (${sure})`))));
  }
  setText(part.guesses, describeGuesses(seen.trainer.reward));
}

function showTrial(seen) {
  trial = seen;
  const isOpen = seen !== null && ["Progressing", "Paused", "WaitingPromotion"].includes(seen.phase);
  part.trial.hidden = !isOpen;
  if (!isOpen) {
    setText(part["trial-failure"], "");
    return;
  }
  const { score, judged, proof } = describeTrial(seen);
  setText(part["trial-score"], score);
  setText(part["trial-judged"], judged);
  setText(part["trial-proof"], proof);
  part.keep.disabled = !seen.may_decide;
  part.keep.title = seen.may_decide ? "" : `Possible after ${seen.min_users} comparisons`;
}

async function decide(action) {
  if (!trial) return;
  const { id: rollout, generation, decision_digest } = trial;
  const body = action === "approve" ? { rollout, generation, decision_digest } : { rollout };
  setText(part["trial-failure"], "");
  const refused = await fetch(`/playground/trial:${action}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  }).then(readRefusal, () => "The gateway cannot be reached.");
  if (refused) setText(part["trial-failure"], refused);
  else part.now.focus(); // the buttons are about to vanish
  await look();
}

async function readRefusal(response) {
  if (response.ok) return "";
  return (await response.json().catch(() => null))?.error?.message ?? "That was refused.";
}

function askBeside(question) {
  if (!question) return;
  part["beside-answers"].hidden = false;
  for (const [place, checkpoint] of [["beside-before", "first"], ["beside-now", "stable"]]) {
    part[place].load("/playground/beside", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ messages: [{ role: "user", content: question }], checkpoint }),
    });
  }
}
