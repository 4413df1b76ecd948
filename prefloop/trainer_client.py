"""The trainer's status server as the commands call it, and what is read of its answers.

It listens on the trainer's own machine; PREFLOOP_TRAINER_URL names another address.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import httpx
import msgspec

from prefloop.gateway_client import decode_answer
from prefloop.status import guess_trainer_url
from prefloop.terminal import CommandFailed, print_json

T = TypeVar("T")
TIMEOUT_S = 10.0


class ListedRound(msgspec.Struct, frozen=True):
    """A finished round, as it is listed."""

    number: int
    kind: str
    outcome: str
    finished_at: float
    reason: str = ""
    checkpoint: str | None = None
    start: str = "stable"


class RoundList(msgspec.Struct, frozen=True):
    """Finished rounds, oldest first."""

    data: list[ListedRound]


class ShownRound(msgspec.Struct, frozen=True):
    """All that is on record of a round. details: what it was made of, and seconds by phase."""

    number: int
    kind: str
    started_at: float
    outcome: str | None = None
    finished_at: float | None = None
    reason: str = ""
    checkpoint: str | None = None
    start: str = "stable"
    num_left: int = 0
    num_rows: int = 0
    has_report: bool = False
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}


class Learnt(msgspec.Struct, frozen=True):
    """What one checkpoint learnt of a person."""

    checkpoint: str
    num_rows: int
    num_ancestors: int


class LearntList(msgspec.Struct, frozen=True):
    """Every checkpoint that learnt from a person."""

    data: list[Learnt]


class RoundState(msgspec.Struct, frozen=True):
    """What the trainer does now, and why."""

    state: str
    reason: str
    number: int | None = None
    progress: float = 0.0
    seconds_left: float | None = None


class TrainerState(msgspec.Struct, frozen=True):
    """What is read of the trainer's status."""

    round: RoundState
    rounds: list[ListedRound] = []


def find_url(gateway: str) -> str:
    """The trainer's address: as the environment says, else two ports above the gateway's."""
    return (os.environ.get("PREFLOOP_TRAINER_URL") or guess_trainer_url(gateway)).rstrip("/")


def send(url: str, method: str, path: str, body: Any = None) -> bytes:
    """The trainer's answer. Ends the command with one line if it refuses, or does not answer."""
    try:
        answer = httpx.request(method, url + path, json=body, timeout=TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandFailed(f"No trainer answers at {url}: {error}.") from None
    if answer.is_error:
        try:
            message = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{answer.status_code} {answer.text[:200]}"
        raise CommandFailed(f"{message}.")
    return answer.content


def ask(url: str, path: str, kind: type[T]) -> T:
    """The trainer's answer to GET, read."""
    return decode_answer(url, send(url, "GET", path), kind)


def show(url: str, path: str, kind: type[T], *, as_json: bool) -> T | None:
    """The same; as_json: the answer is printed as it came, and None returned."""
    answer = send(url, "GET", path)
    found = decode_answer(url, answer, kind)
    if as_json:
        print_json(answer)
    return None if as_json else found
