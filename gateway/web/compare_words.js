// Every sentence that <prefloop-compare> says. To translate it, assign to PrefloopCompare.words before the first element appears.

export const WORDS = {
  answer: "Answer",
  pair: "Two answers",
  answers: ["First answer", "Second answer"],
  picked: "Your pick",
  question: "Which answer is better?",
  retry: "Try again",
  report: "Report as harmful",
  reporting: "Reported with your choice. Without a preference, send the report alone.",
  reported: "Thank you. Your report was sent.",
  reportOnly: "Send report only",
  buttons: { first: "First is better", second: "Second is better", tie: "Tie", both_bad: "Both bad", skip: "Skip" },

  writing: "The answer is being written…",
  writingTwo: "Two answers are being written…",
  complete: "The answer is complete.",
  empty: "The model said nothing.",
  stopped: "Stopped.",
  asking: "Both answers are complete. Which one is better?",
  closed: "Went on without choosing: the first answer stays.",
  sending: "Saving your choice…",
  thanks: {
    first: "Thank you. You preferred the first answer.",
    second: "Thank you. You preferred the second answer.",
    tie: "Thank you. You called it a tie.",
    both_bad: "Thank you. Neither was good.",
    skip: "Skipped.",
  },

  // Why an answer did not come to its end (AnswerError.reason).
  failures: {
    unreachable: "The server cannot be reached. Check the connection and try again.",
    busy: "Too many questions at once. Wait a moment and try again.",
    starting: "The model is not ready yet. It may still be starting: try again in a moment.",
    failed: "The model did not answer. Try again in a moment.",
    refused: "The question was not accepted.",
    broken: "The answer broke off in the middle.",
    stopped: "Stopped before an answer came.",
  },

  // Why a choice was not stored.
  unsent: "Your choice could not be sent. Check the connection and try again.",
  unsaved: "Your choice could not be saved yet. Please try again.",
  refusals: {
    404: "The gateway does not know this question any more.",
    409: "A different choice was already stored for these answers.",
    410: "This question has expired, so your choice was not counted.",
  },
  unaccepted: "Your choice was not accepted.",
};
