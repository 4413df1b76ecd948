// Sends a choice to the gateway. The token in its body alone authorises: no key and no cookie leaves the page.

const TIMEOUT_MS = 15_000;

/** Send it. Resolves to null once it is stored for good, else to {message, canRetry, status, code, said}. */
export async function sendChoice(gateway, comparison, body, words) {
  try {
    const response = await fetch(`${gateway.replace(/\/+$/, "")}/v1/comparisons/${encodeURIComponent(comparison)}/choice`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      credentials: "omit",
      keepalive: true, // arrives even if the person leaves the page now
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (response.ok) return null;
    const { status } = response;
    const { code = null, message: said = null } = (await response.json().catch(() => null))?.error ?? {};
    const canRetry = status >= 500 || status === 429;
    return { message: canRetry ? words.unsaved : (words.refusals[status] ?? words.unaccepted), canRetry, status, code, said };
  } catch {
    return { message: words.unsent, canRetry: true, status: null, code: null, said: null };
  }
}
