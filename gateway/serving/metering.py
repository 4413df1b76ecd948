"""Settles an answer with its key: the tokens that it took, as its usage says, are booked and count against the key's limits.

Tokens of a stream are read from its usage event, which the engine is asked for where the key has limits or tokens have a price; a
client that did not ask for it does not see it. Other streams that bring none are estimated, by their events and the request's bytes.
Responses name tokens otherwise, and their streams end with an event that holds the whole response.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.http.sse import EventSplitter
from gateway.serving.body import add_fields
from gateway.serving.endpoints import RESPONSES

if TYPE_CHECKING:
    from gateway.serving.exchange import Exchange

_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d+)')
_COMPLETION = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
_USAGE = re.compile(
    rb'"usage":\{"prompt_tokens":(\d+),(?:"total_tokens":\d+,)?"completion_tokens":(\d+)'
)  # as vLLM does
_INPUT = re.compile(rb'"input_tokens"\s*:\s*(\d+)')
_OUTPUT = re.compile(rb'"output_tokens"\s*:\s*(\d+)')
_NO_CHOICES = b'"choices":[]'
_BYTES_PER_TOKEN = 4  # of a prompt whose tokens nobody counted, because its client left


def read_usage(answer: bytes) -> tuple[int, int]:
    """(prompt, completion) tokens as the answer's usage says; the last mention counts, for text comes before it."""
    usual = _USAGE.match(answer, answer.rfind(b'"usage":{"prompt_tokens"'))
    if usual is not None:
        return int(usual[1]), int(usual[2])
    return (
        _read_last(answer, b'"prompt_tokens"', _PROMPT) or _read_last(answer, b'"input_tokens"', _INPUT),
        _read_last(answer, b'"completion_tokens"', _COMPLETION) or _read_last(answer, b'"output_tokens"', _OUTPUT),
    )


def _read_last(answer: bytes, key: bytes, pattern: re.Pattern[bytes]) -> int:
    found = pattern.match(answer, answer.rfind(key))
    return int(found[1]) if found else 0


def settle_answer(exchange: Exchange, answer: bytes) -> None:
    """Settle with a whole answer."""
    settle_tokens(exchange, *read_usage(answer))


def settle_tokens(exchange: Exchange, prompt: int, completion: int, *, is_estimated: bool = False) -> None:
    """Settle with counts that are known already, or estimated."""
    context, identity = exchange.context, exchange.identity
    context.usage.add(identity.key_id, prompt, completion, is_estimated=is_estimated)
    context.limits.settle(identity, prompt, completion)


def must_meter(exchange: Exchange) -> bool:
    """Whether a stream's tokens must be known exactly."""
    return exchange.identity.limits is not None or exchange.context.settings.gateway.has_prices


def guess_prompt(exchange: Exchange) -> int:
    """About how many tokens the request has, where no usage says it."""
    return len(exchange.body) // _BYTES_PER_TOKEN


class StreamMeter:
    """Reads a stream's usage event, and takes it out where the client did not ask for it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._is_shown = exchange.request.wants_usage or not must_meter(exchange)
        self._usage: tuple[int, int] | None = None

    @staticmethod
    def ask_for_usage(exchange: Exchange, body: bytes) -> bytes:
        """The body with the usage event asked for, where the path has one."""
        if exchange.endpoint is RESPONSES:
            return body
        given = exchange.request.stream_options
        options = given if isinstance(given, dict) else {}
        return add_fields(body, {"stream_options": {**options, "include_usage": True}})

    def filter(self, events: bytes) -> bytes:
        """The events that the client may see."""
        if self._exchange.endpoint is RESPONSES:
            if b'"output_tokens"' in events:
                self._usage = read_usage(events)
            return events
        if _NO_CHOICES not in events:
            return events
        shown = []
        for event in EventSplitter().feed(events):
            if _NO_CHOICES in event and b'"usage":{' in event:
                self._usage = read_usage(event)
                if self._exchange.call.record is not None:
                    self._exchange.call.record.usage = event
                if not self._is_shown:
                    continue
            shown.append(event)
        return b"".join(shown)

    def settle(self, num_events: int) -> None:
        """The stream has ended; where it ended early, its events are its tokens."""
        exchange = self._exchange
        prompt, completion = self._usage or (guess_prompt(exchange), num_events)
        settle_tokens(exchange, prompt, completion, is_estimated=self._usage is None)
