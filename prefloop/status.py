"""`prefloop status`: what serves, what is on trial, what the trainer does and why it did not train."""

from __future__ import annotations

import os

import httpx
import msgspec
from rich.table import Table

from prefloop.gateway_client import Checkpoint, GatewayClient, JsonOption, with_gateway
from prefloop.terminal import make_table, plain, print_json

TRAINER_TIMEOUT_S = 5.0


class RolloutLine(msgspec.Struct, frozen=True):
    """The rollout that is on."""

    phase: str
    verdict_sentence: str


class EngineLine(msgspec.Struct, frozen=True):
    """One engine; adapters: names of those it holds."""

    url: str
    up: bool
    adapters: list[str]


class AskingLine(msgspec.Struct, frozen=True):
    """How the two answers of comparisons are picked; problem: why at random."""

    problem: str
    num_by_share: dict[str, int]


class GatewayStatus(msgspec.Struct, frozen=True):
    """What is shown of the gateway's status."""

    stable: Checkpoint | None
    canary: Checkpoint | None
    rollout: RolloutLine | None
    counters: dict[str, object]
    engines: list[EngineLine]
    asking: AskingLine | None = None


class Round(msgspec.Struct, frozen=True):
    """What the trainer does now, and why."""

    state: str
    reason: str
    number: int | None = None
    progress: float = 0.0


class PastRound(msgspec.Struct, frozen=True):
    """A round that ended."""

    number: int
    outcome: str
    reason: str | None = None
    checkpoint: str | None = None


class Sampling(msgspec.Struct, frozen=True):
    """How fast the trainer samples beside people, and why."""

    cap: int | None = None
    reason: str = ""
    is_blind: bool = False


class TrainerStatus(msgspec.Struct, frozen=True):
    """What is shown of the trainer's status."""

    round: Round
    rounds: list[PastRound]
    preferences: int = 0
    new_since_round: int = 0
    drift: list[str] = []
    sampling: Sampling = Sampling()


@with_gateway
def show_status(client: GatewayClient, as_json: JsonOption = False) -> None:
    """Show what serves, what is on trial, what the trainer does and why it did not train."""
    whole = client.send("GET", "/operator/v1/status")
    trainer_url = os.environ.get("PREFLOOP_TRAINER_URL") or guess_trainer_url(client.url)
    trainer = ask_trainer(trainer_url)
    if as_json:
        both = {"gateway": msgspec.Raw(whole), "trainer": msgspec.Raw(trainer or b"null")}
        print_json(both)
        return
    table = make_table("part", "state", whole=("part",))
    table.show_header = False
    _add_gateway(table, client.read(whole, GatewayStatus))
    try:
        _add_trainer(table, msgspec.json.decode(trainer or b"", type=TrainerStatus))
    except msgspec.MsgspecError:
        table.add_row("trainer", f"no trainer answers at {trainer_url}")
    plain.print(table)


def guess_trainer_url(gateway_url: str) -> str:
    """Where `prefloop up` puts the trainer of this gateway: two ports above it, on this machine."""
    return f"http://127.0.0.1:{(httpx.URL(gateway_url).port or 8800) + 2}"


def ask_trainer(url: str) -> bytes | None:
    """The trainer's status as JSON; None if there is none at this address."""
    try:
        answer = httpx.get(url.rstrip("/") + "/status", timeout=TRAINER_TIMEOUT_S).raise_for_status()
        answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    return answer.content


def describe_round(training: Round) -> str:
    """What the trainer does, and of which round, or why it does not train."""
    if training.state in ("training", "evaluating", "publishing"):
        return f"{training.state} round {training.number}, {training.progress:.0%}: {training.reason}"
    return f"{training.state}: {training.reason}"


def describe_asking(asking: AskingLine) -> str:
    """How many comparisons of each share were shown, and why they are random if they are."""
    counted = ", ".join(f"{share} {num}" for share, num in sorted(asking.num_by_share.items())) or "nobody yet"
    return f"{counted}; {asking.problem}" if asking.problem else counted


def _add_gateway(table: Table, status: GatewayStatus) -> None:
    table.add_row("serving", status.stable.id if status.stable else "nothing yet")
    table.add_row("on trial", status.canary.id if status.canary else "nothing")
    if status.rollout:
        table.add_row("rollout", f"{status.rollout.phase}: {status.rollout.verdict_sentence}")
    table.add_row("counts", ", ".join(f"{name} {value}" for name, value in status.counters.items()))
    if status.asking:
        table.add_row("asked", describe_asking(status.asking))
    for engine in status.engines:
        table.add_row("engine", f"{engine.url} {'up' if engine.up else 'down'}, holds {len(engine.adapters)}")


def _add_trainer(table: Table, status: TrainerStatus) -> None:
    table.add_row("trainer", describe_round(status.round))
    table.add_row("preferences", f"{status.preferences}, {status.new_since_round} since the last round")
    if status.sampling.is_blind:
        table.add_row("sampling", f"at most {status.sampling.cap} answers at a time: {status.sampling.reason}")
    for sentence in status.drift:
        table.add_row("drift", sentence)
    for past in status.rounds[-5:]:
        table.add_row(f"round {past.number}", f"{past.outcome}: {past.reason or past.checkpoint}")
