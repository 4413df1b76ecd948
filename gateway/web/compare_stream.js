// Reads a chat answer out of an HTTP response: OpenAI's chunks as server-sent events, or one whole chat completion as JSON.
// Copes with events that are split across reads and with errors that arrive in mid-stream under HTTP 200. Reads text only:
// tool calls pass unseen.

/**
 * An answer that did not come to its end. `reason` is a key of the element's words: busy, starting, failed, refused, broken,
 * unreachable, stopped. `status` is the HTTP status, `code` and `said` what the server wrote, where there is such.
 */
export class AnswerError extends Error {
  constructor(reason, { status = null, code = null, said = null } = {}) {
    super(said ?? reason);
    Object.assign(this, { reason, status, code, said });
  }
}

/**
 * Read an answer and report its text as it comes: onText(index, text), index 0 or 1.
 *
 * Resolves to {id, comparison}: the completion's id, and {id, token, expires_at} if there is a choice to make, else null.
 * Rejects with AnswerError, or with AbortError when the response's request was aborted.
 */
export async function readAnswer(response, onText) {
  if (!response.ok) throw await describeRefusal(response);
  const answer = { id: null, comparison: null, isWhole: false };
  try {
    if (response.headers.get("content-type")?.includes("json")) {
      takeChunk(await response.json(), answer, onText);
    } else if (response.body) {
      for await (const data of readEvents(response.body)) {
        if (data === "[DONE]") answer.isWhole = true; // read on to the end: to leave now would look like a client that went away
        else takeChunk(JSON.parse(data), answer, onText);
      }
    }
  } catch (error) {
    if (error instanceof AnswerError || error.name === "AbortError") throw error; // else whatever is whole by now stands
  }
  if (!answer.isWhole) throw new AnswerError("broken");
  return { id: answer.id, comparison: answer.comparison };
}

function takeChunk(chunk, answer, onText) {
  if (chunk.error) throw new AnswerError("broken", { code: chunk.error.code ?? null, said: chunk.error.message ?? null });
  answer.id ??= chunk.id ?? null;
  answer.comparison = chunk.comparison ?? answer.comparison;
  for (const { index = 0, delta, message, finish_reason: end } of chunk.choices ?? []) {
    const text = (delta ?? message)?.content;
    if (text && index < 2) onText(index, text);
    if (end && index === 0) answer.isWhole = true;
  }
}

/** Yield the data of each server-sent event. An event that the end of the stream cuts short counts as well. */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      const lines = (rest + decoder.decode(value, { stream: !done })).split(/\r\n|\n|\r(?!$)/);
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        if (line === "" && data.length) yield data.splice(0).join("\n");
      }
      if (!done) continue;
      if (data.length) yield data.join("\n");
      return;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading stops the answer
  }
}

async function describeRefusal(response) {
  const body = await response.json().catch(() => null);
  const { status } = response;
  const details = { status, code: body?.error?.code ?? null, said: body?.error?.message ?? null };
  if (status === 429) return new AnswerError("busy", details);
  if (status === 503) return new AnswerError("starting", details);
  return new AnswerError(status >= 500 ? "failed" : "refused", details);
}
