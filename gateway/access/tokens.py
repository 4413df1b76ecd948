"""Comparison tokens: who holds one may say, once, which of two answers was better.

HMAC-SHA256 with key id over comparison id, app, chooser, order, digests of both answers and expiry. The order is
given by completion ids, so that the readable part says nothing of which arm wrote which answer. Expiry is enforced
where the choice is stored, by the row's own time, so that repeating a choice after expiry still gets the stored
answer.
"""

import base64
import binascii
import hashlib
import hmac

import msgspec

from gateway.access.secrets import Secrets


class ComparisonToken(msgspec.Struct, frozen=True, array_like=True):
    """What a token says; digests are SHA-256 of the answers' text in display order, first 16 hex digits."""

    comparison: str
    app: str
    chooser: str
    order: tuple[str, str]
    digests: tuple[str, str]
    expires_at: int


def text_digest(text: str) -> str:
    """The digest of an answer, as tokens carry it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sign_token(claims: ComparisonToken, secrets: Secrets) -> str:
    """The token as text: version, key id, claims, MAC, separated by dots."""
    payload = f"ct1.{secrets.token_key_id}.{_encode(msgspec.json.encode(claims))}"
    return f"{payload}.{_encode(_mac(secrets.token_key, payload))}"


def read_token(token: str, secrets: Secrets) -> ComparisonToken | None:
    """The claims of a token that we signed; None for anything else."""
    payload, _, mac = token.rpartition(".")
    parts = payload.split(".")
    if len(parts) != 3 or parts[0] != "ct1" or parts[1] not in secrets.token_keys or not token.isascii():
        return None
    try:
        if not hmac.compare_digest(_decode(mac), _mac(secrets.token_keys[parts[1]], payload)):
            return None
        return msgspec.json.decode(_decode(parts[2]), type=ComparisonToken)
    except (binascii.Error, ValueError):
        return None


def _mac(key: bytes, payload: str) -> bytes:
    return hmac.new(key, payload.encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
