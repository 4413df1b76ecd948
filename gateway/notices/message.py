"""What a notice says and how it is signed: a transition as a webhook's JSON, as Slack's, and as a line. Pure.

Signed as Standard Webhooks 1.0 says: base64(HMAC-SHA256(secret, "<id>.<timestamp>.<body>")) under `webhook-signature`. The id is
the same whenever the notice is sent again, so that a receiver can drop repeats.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from gateway.rollout.pure.transitions import WAITING
from gateway.rollout.pure.verdict import say_reason


@dataclass(frozen=True)
class Transition:
    """One line of a rollout's audit trail. event: its number; at: epoch seconds; reason: a code; note: an operator's words."""

    event: int
    at: float
    policy: str
    rollout: str
    checkpoint: str
    stable: str
    from_phase: str
    to_phase: str
    actor: str
    reason: str
    note: str

    @property
    def id(self) -> str:
        """The notice's id, the same at every try and different in every deployment."""
        told = f"{self.policy}\0{self.rollout}\0{self.event}\0{self.at!r}"
        return f"msg_{hashlib.sha256(told.encode()).hexdigest()[:24]}"


class TransitionData(msgspec.Struct, frozen=True, rename={"from_phase": "from", "to_phase": "to"}):
    """The names of the API's audit trail, and which rollout it is. sentence: all of it for people."""

    policy: str
    rollout: str
    checkpoint: str
    stable: str
    from_phase: str
    to_phase: str
    actor: str
    reason: str
    reason_text: str
    note: str
    sentence: str


class WebhookBody(msgspec.Struct, frozen=True):
    """As Standard Webhooks has it: a type, a time (ISO 8601), and data."""

    type: str
    timestamp: str
    data: TransitionData


def describe(it: Transition) -> str:
    """One sentence or two for people."""
    words = say_reason(it.reason)
    why = f" ({words})" if words else ""
    note = f" Note: {it.note}." if it.note else ""
    todo = f" Approve or abort it: prefloop rollout approve {it.rollout}." if it.to_phase == WAITING else ""
    return f"Rollout {it.rollout} of {it.checkpoint}: {it.from_phase or 'new'} -> {it.to_phase}{why}, by {it.actor}.{note}{todo}"


def build_webhook(it: Transition) -> bytes:
    """The body of a webhook."""
    when = datetime.fromtimestamp(it.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    data = TransitionData(
        it.policy, it.rollout, it.checkpoint, it.stable, it.from_phase, it.to_phase, it.actor, it.reason,
        say_reason(it.reason), it.note, describe(it),
    )  # fmt: skip
    return msgspec.json.encode(WebhookBody("rollout.transition", when, data))


def build_slack(it: Transition) -> bytes:
    """The body of an incoming webhook of Slack's: plain text, in which nobody's note can mention anybody."""
    text = describe(it).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return msgspec.json.encode({"text": text})


def sign(secret: bytes, notice_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that say who sends it. timestamp: epoch seconds of this try."""
    digest = hmac.new(secret, f"{notice_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": notice_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
