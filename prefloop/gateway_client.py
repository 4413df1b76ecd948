"""The gateway's operator API as the commands call it: options, one request, and what is read of the answers.

Fails with the gateway's own words when it refuses, and in one line when it is away or answers what cannot be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import typer

from prefloop.terminal import fail

GatewayOption = Annotated[str, typer.Option("--gateway", envvar="PREFLOOP_GATEWAY_URL", help="The gateway's address.")]
KeyOption = Annotated[
    str,
    typer.Option("--key", envvar="PREFLOOP_KEY", help="An operator or admin key.", show_default="the local admin key"),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="PREFLOOP_STATE_DIR",
        help="The state directory.",
        show_default="as prefloop.toml says, else state",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_GATEWAY = "http://127.0.0.1:8800"
TIMEOUT_S = 30.0

T = TypeVar("T")


class Checkpoint(msgspec.Struct, frozen=True):
    """A checkpoint, by its name."""

    id: str


class Evidence(msgspec.Struct, frozen=True):
    """Preference evidence of a rollout. unit: what `users` counts, "user" or "comparison"."""

    users: int
    e: float
    threshold: float
    net_win_rate: float
    ci_low: float
    ci_high: float
    unit: str = "user"
    fragility: int = 0


class Guardrail(msgspec.Struct, frozen=True):
    """One guardrail; missing: clean users that would make it pass; seen: answers that its sensor saw; action: of its alarm."""

    name: str
    status: str
    missing: int | None = None
    seen: int = 0
    action: str = ""
    waived: bool = False


class AuditEvent(msgspec.Struct, frozen=True, rename={"from_phase": "from", "to_phase": "to"}):
    """One line of a rollout's audit trail. `reason` is a code, `note` what an operator wrote."""

    at: float
    from_phase: str
    to_phase: str
    actor: str
    reason: str = ""
    note: str = ""


class Rollout(msgspec.Struct, frozen=True):
    """A rollout as its operators see it. `weight_of`: whom `weight` is the share of; `actions`: what may be done now."""

    id: str
    checkpoint: str
    stable: str
    aa: bool
    phase: str
    step: int
    num_steps: int
    weight: float
    generation: int
    decision_digest: str
    created_at: float
    verdict_sentence: str
    evidence: Evidence
    guardrails: list[Guardrail]
    events: list[AuditEvent]
    weight_of: str
    actions: list[str] = msgspec.field(default_factory=list)
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class GatewayClient:
    """A gateway's address, and the key of whoever asks."""

    url: str
    key: str

    def ask(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        """One request, and what its answer says."""
        answer = self.send(method, path, body)
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.MsgspecError as error:
            raise fail(f"{self.url} answers what this release cannot read: {error}.") from None

    def send(self, method: str, path: str, body: Any = None) -> bytes:
        """One request, and its answer as it came."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        try:
            response = httpx.request(method, self.url + path, content=content, headers=headers, timeout=TIMEOUT_S)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise fail(f"{self.url} is no address of a gateway: write http://HOST:PORT.") from None
        except httpx.RequestError as error:
            raise fail(f"No gateway answers at {self.url} ({error}). Is `prefloop up` running?") from None
        if not response.is_success:
            raise fail(f"{response.status_code}: {_read_error(response)}")
        return response.content


def connect(gateway: str, key: str, state_dir: Path | None) -> GatewayClient:
    """The client that the options ask for; without a key, the admin key of the state directory."""
    if not key:
        state_dir = find_state_dir(state_dir)
        key = read_admin_key(state_dir)
    if not key:
        raise fail(f"No key: pass --key or PREFLOOP_KEY, or point --state-dir at the gateway's ({state_dir} has none).")
    if not (key.isascii() and key.isprintable()):
        raise fail("The key holds characters that no key has.")
    return GatewayClient(gateway.rstrip("/"), key)


def find_state_dir(given: Path | None) -> Path:
    """Where state is kept: as the command line, the environment or prefloop.toml says. Raises SettingsError."""
    from feedback.settings import SharedSettings

    return SharedSettings().state_dir if given is None else given


def read_admin_key(state_dir: Path) -> str:
    """The admin key that the gateway's first start wrote, or "" before it."""
    path = state_dir / "secrets" / "admin_key"
    return path.read_text().strip() if path.exists() else ""


def quote_id(text: str) -> str:
    """An id as one part of a path, whatever was typed."""
    return quote(text, safe="", errors="surrogateescape")


def _read_error(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300].strip() or response.reason_phrase
