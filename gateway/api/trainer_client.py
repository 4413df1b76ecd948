"""Asks the trainer what it does, in the name of whoever may see it: no browser ever talks to the trainer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway.errors import EngineUnavailable, GatewayError

if TYPE_CHECKING:
    from gateway.serving.context import Context

_logger = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
T = TypeVar("T")


class TrainerProblem(GatewayError):
    """Why the trainer said nothing of use, as a sentence. status: what it answered, None if nothing."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Message(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Message


async def fetch_from_trainer(context: Context, path: str) -> bytes:
    """What the trainer answers to GET. Raises TrainerProblem."""
    url = _find_url(context)
    try:
        status, body = await context.upstream.call(url, path, None, timeout_s=_TIMEOUT_S)
    except EngineUnavailable:
        raise TrainerProblem("The trainer does not answer.") from None
    if status != 200:
        raise TrainerProblem(f"The trainer answered {status}.", status)
    return body


async def command_trainer(context: Context, path: str, body: dict[str, Any]) -> bytes:
    """What the trainer answers to POST, where it does what it was told. Raises TrainerProblem, with its own words if it refuses."""
    url = _find_url(context)
    try:
        status, answer = await context.upstream.call(
            url, path, body, timeout_s=_TIMEOUT_S, token=context.secrets.trainer_token
        )
    except EngineUnavailable:
        raise TrainerProblem("The trainer does not answer.") from None
    if status >= 400:
        raise TrainerProblem(_read_refusal(answer) or f"The trainer answered {status}.", status)
    return answer


def _find_url(context: Context) -> str:
    url = context.settings.gateway.trainer_url.rstrip("/")
    if not url:
        raise TrainerProblem("It is not known where the trainer is: set gateway.trainer_url.")
    return url


def _read_refusal(answer: bytes) -> str:
    """The trainer's message as a sentence; empty if there is none."""
    try:
        message = msgspec.json.decode(answer, type=_Refusal).error.message
    except (ValueError, RecursionError):
        return ""
    return f"{message[:1].upper()}{message[1:]}." if message else ""


async def ask_trainer(context: Context, path: str, kind: type[T]) -> T:
    """The same, read as JSON of a kind. Raises TrainerProblem."""
    body = await fetch_from_trainer(context, path)
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
        _logger.warning("the trainer's %s cannot be read: %s", path, error)
        raise TrainerProblem("The trainer says something that cannot be read.") from None
