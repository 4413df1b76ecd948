// Reads a streamed chat completion: server-sent events in, one callback per piece of text out.
// Copes with events that are split across reads and with errors that arrive in mid-stream under HTTP 200.

/** An error that was already put in words for the person who reads the page. */
export class ChatError extends Error {}

/**
 * Ask for an answer and report it as it is written.
 *
 * onText(index, text) is called for each piece, index 0 or 1. Resolves to {comparison, finished}: comparison is null unless the
 * gateway asks the person to choose; finished holds the indexes that ended in good order. Rejects with ChatError, or with
 * AbortError when `signal` fired.
 */
export async function streamChat({ url, headers, messages, signal, onText }) {
  let response;
  try {
    response = await fetch(url, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: JSON.stringify({ messages, stream: true }),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ChatError("The gateway cannot be reached. Is it running?");
  }
  if (!response.ok) throw new ChatError(await describeFailure(response));

  const result = { comparison: null, finished: new Set() };
  let done = false;
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") {
        done = true;
        break;
      }
      takeChunk(JSON.parse(data), result, onText);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ChatError) throw error;
    throw new ChatError("The answer broke off in the middle.");
  }
  if (!done && result.finished.size === 0) throw new ChatError("The answer broke off in the middle.");
  return result;
}

function takeChunk(chunk, result, onText) {
  if (chunk.error) throw new ChatError(chunk.error.message || "The model could not finish its answer.");
  for (const choice of chunk.choices ?? []) {
    if (choice.delta?.content) onText(choice.index, choice.delta.content);
    if (choice.finish_reason) result.finished.add(choice.index);
  }
  if (chunk.comparison) result.comparison = chunk.comparison;
}

/** Yield the data of each server-sent event. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trimStart();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Put a refused request in plain words. */
export async function describeFailure(response) {
  const body = await response.json().catch(() => null);
  const said = body?.error?.message;
  if (response.status === 429) return "Too many questions at once. Wait a moment and try again.";
  if (response.status === 503) return "The model is not ready yet. It may still be starting: try again in a moment.";
  if (response.status >= 500) return "The model did not answer. Try again in a moment.";
  return said || `The gateway refused the request (${response.status}).`;
}
