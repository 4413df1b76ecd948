"""Signs the console's session cookie and its CSRF value.

A session names an API key and an expiry, nothing else: whoever reads it still looks the key up, so a revoked key ends
its sessions at once. The CSRF value is derived from the cookie; a page of another site can neither read nor guess it.
Does not check keys and does not store anything.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass

COOKIE_NAME = "prefloop_session"
CSRF_HEADER = "x-prefloop-csrf"
SESSION_TTL_S = 12 * 3600


@dataclass(frozen=True)
class WebSession:
    """One signed-in browser: the key it signed in with, when it ends (epoch seconds), its CSRF value."""

    key_id: str
    expires_at: int
    csrf: str


def sign_session(key_id: str, token_key: bytes, *, now: float, ttl_s: int = SESSION_TTL_S) -> tuple[str, WebSession]:
    """Return the cookie value and the session of a key that was just verified. Raises ValueError on an odd key id."""
    if not key_id or "." in key_id:
        raise ValueError("key id must be non-empty and hold no dot")
    expires_at = int(now) + ttl_s
    payload = f"{key_id}.{expires_at}"
    cookie = f"{payload}.{_sign(token_key, 'session', payload)}"
    return cookie, WebSession(key_id, expires_at, _sign(token_key, "csrf", cookie))


def read_session(cookie: str | None, token_key: bytes, *, now: float | None = None) -> WebSession | None:
    """Return the session of a cookie, or None if it is missing, malformed, forged or expired."""
    if not cookie or len(cookie) > 512 or not cookie.isascii():
        return None
    payload, _, signature = cookie.rpartition(".")
    if not hmac.compare_digest(_sign(token_key, "session", payload), signature):
        return None
    key_id, _, expires_text = payload.rpartition(".")
    expires_at = int(expires_text)  # ours: the signature matched
    if (time.time() if now is None else now) >= expires_at:
        return None
    return WebSession(key_id, expires_at, _sign(token_key, "csrf", cookie))


def is_csrf_valid(session: WebSession, header: str | None) -> bool:
    """Whether a changing request carried the value that only our own page can know."""
    return header is not None and header.isascii() and hmac.compare_digest(session.csrf, header)


def _sign(key: bytes, purpose: str, text: str) -> str:
    """Purpose is part of the message, so that no signature of one kind passes for another."""
    digest = hmac.new(key, f"prefloop-{purpose}\n{text}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
