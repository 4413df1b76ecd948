"""What two woven streams leave behind when they end badly."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import cast

from conftest import QUESTION, Running, wait_until

from gateway.api.playground import PLAYGROUND
from gateway.http.call import Call
from gateway.http.protocol import ServingProtocol
from gateway.http.upstream import EngineAnswer
from gateway.serving.dispatch import open_exchange
from gateway.serving.endpoints import CHAT
from gateway.serving.outcome import Outcome
from gateway.serving.pairs.asking import Ask, Side
from gateway.serving.pairs.candidates import CandidateDraft, draft_pair
from gateway.serving.pairs.interleave import CandidateStream, interleave_streams


class Answer:
    """An engine's stream that says one thing, and takes its time to end."""

    def __init__(self, engine: str, event: bytes) -> None:
        self.engine = engine
        self.is_closed = False
        self._event = event

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._event
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)

    def close(self) -> None:
        self.is_closed = True


async def answer_nothing(call: Call) -> None:
    raise AssertionError("it is not asked")


def weave_answers(gateway: Running, answers: tuple[Answer, Answer]) -> AsyncGenerator[bytes, None]:
    body = json.dumps(QUESTION).encode()
    call = Call(cast(ServingProtocol, None), answer_nothing, [])
    exchange = open_exchange(gateway.context, PLAYGROUND, CHAT, call, lambda _: None, body)
    sides = Side("stable", exchange.route.checkpoint, 1), Side("stable", exchange.route.checkpoint, 2)
    streams = [
        CandidateStream(CandidateDraft(side, index), cast(EngineAnswer, answer), Outcome("stable"))
        for index, (side, answer) in enumerate(zip(sides, answers, strict=True))
    ]
    return interleave_streams(exchange, Ask("policy", 1.0), draft_pair(sides, b"key"), streams)


async def test_a_client_that_leaves_while_the_streams_end_leaves_none_open(gateway: Running) -> None:
    url = gateway.context.settings.gateway.engines[0]
    answers = Answer(url, b'data: {"error": {}}\n\n'), Answer(url, b": still here\n\n")
    seen: list[bytes] = []

    async def listen() -> None:
        async with aclosing(weave_answers(gateway, answers)) as events:
            async for event in events:
                seen.append(event)

    listening = asyncio.create_task(listen())
    await wait_until(lambda: seen)
    await asyncio.sleep(0.05)  # the second stream is ending
    listening.cancel()
    with suppress(asyncio.CancelledError):
        await listening
    assert [answer.is_closed for answer in answers] == [True, True]
    assert b"engine_lost" in seen[0]


async def test_an_event_that_cannot_be_read_ends_its_stream(gateway: Running) -> None:
    url = gateway.context.settings.gateway.engines[0]
    answers = Answer(url, b'data: {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}\n\n"), Answer(url, b": still here\n\n")
    async with asyncio.timeout(5), aclosing(weave_answers(gateway, answers)) as events:
        assert [b"engine_lost" in event async for event in events] == [True]
