// What the trainer and a trial say, in words for the person who taught it. Pure functions.

import { duration, evidence, percent } from "./format.js";

const SURE = 2; // standard deviations
const LIKELY = 1;
const LEAST_WEIGHT = 0.1;
// A feature that is liked, and what its opposite is called (trainer/text/style.py FEATURES).
export const FEATURES = {
  log_words: ["longer answers", "shorter answers"],
  finished: ["answers that come to an end", "answers that go on to the limit"],
  ends_properly: ["answers that end with a whole sentence", "answers that break off"],
  list_markup: ["lists", "no lists"],
  heading_markup: ["headings", "no headings"],
  code_block: ["code blocks", "no code blocks"],
  question_back: ["questions back to you", "no questions back"],
  refusal: ["answers that decline", "answers that do not decline"],
  filler_opening: ["openings such as “Sure!”", "answers that get to the point at once"],
  exclamation: ["exclamation marks", "no exclamation marks"],
  copied: ["answers that repeat your words", "answers in words of their own"],
};

/** The features of which something is known, the surest first: {name, text, sure: "clearly" or "probably"}. */
export function describeStyle(style) {
  const known = style.filter(({ name, weight, sd }) => Object.hasOwn(FEATURES, name) && Math.abs(weight) >= LEAST_WEIGHT && Math.abs(weight) >= LIKELY * sd);
  const sureness = ({ weight, sd }) => Math.abs(weight) / Math.max(sd, 1e-6);
  return known
    .sort((a, b) => sureness(b) - sureness(a))
    .map((feature) => ({
      name: feature.name,
      text: FEATURES[feature.name][feature.weight > 0 ? 0 : 1],
      sure: sureness(feature) >= SURE ? "clearly" : "probably",
    }));
}

/** How well your choices were guessed before they were learnt from. */
export function describeGuesses({ prequential_accuracy: accuracy, num_foreseen: num }) {
  if (!num || accuracy === null) return "It has not guessed any of your choices yet.";
  return `It guessed ${Math.round(accuracy * num)} of your last ${num} choices (${percent(accuracy)}; a coin guesses half).`;
}

/** What happens now, in a sentence that changes only when something else happens. */
export function describeNow({ problem, trainer, trial }) {
  if (trial) return describePhase(trial);
  if (!trainer) return problem;
  const { state, number } = trainer.round;
  const what = { preparing: "is being prepared", training: "is training", evaluating: "is being tested", publishing: "is being published" }[state];
  if (what) return `Round ${number} ${what}.`;
  if (state === "learning") return "It is reading many choices at once.";
  if (state === "failing") return "The last step failed and is tried again.";
  const left = trainer.round_every - trainer.new_since_round;
  return left > 0 ? `${count(left, "choice")} until the next round.` : "A round begins soon.";
}

/** How far that is: {share (0 to 1), text}; text may change at any time. */
export function describeProgress({ trainer, trial }) {
  if (trial) return { share: Math.min(1, trial.users / Math.max(1, trial.min_users)), text: `${trial.users} of ${trial.min_users} comparisons` };
  if (!trainer) return { share: 0, text: "" };
  const { round, new_since_round: num, round_every: of } = trainer;
  if (!["preparing", "training", "evaluating", "publishing", "learning"].includes(round.state)) {
    return { share: Math.min(1, num / Math.max(1, of)), text: `${Math.min(num, of)} of ${of} choices${num < of ? "" : `: ${round.reason}`}` };
  }
  const left = round.seconds_left === null ? "" : `, about ${duration(round.seconds_left)} left`;
  return { share: round.progress, text: `${percent(round.progress)}${left}` };
}

/** The trial's evidence, as it is. */
export function describeTrial({ unit, wins, losses, ties, e, threshold, note }) {
  const score = `The new version won ${wins}, lost ${losses}, tied ${ties}.`;
  const judged = unit === "comparison" ? "It is judged by your comparisons, not by users." : "It is judged by everybody’s comparisons.";
  const proof = e >= threshold ? "That is evidence enough." : `Too little evidence yet: ${evidence(e)} of ${evidence(threshold)}. You may decide all the same.`;
  return { score, judged, proof, note };
}

/** How the last round ended; "" before the first. */
export function describeLastRound(rounds) {
  const last = rounds.at(-1);
  if (!last) return "";
  return last.checkpoint ? `Round ${last.number} made a new version.` : `Round ${last.number} made no new version: ${last.reason}.`;
}

function describePhase({ phase }) {
  const said = {
    Pending: "A new version is being loaded.",
    Progressing: "A new version is on trial: every pair has one answer of it.",
    Paused: "The trial is paused.",
    WaitingPromotion: "A new version waits for your decision.",
    Promoting: "The new version is being put in place.",
    Baking: "The new version serves now.",
    Aborting: "The new version is being taken away.",
  };
  return said[phase] ?? phase;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
