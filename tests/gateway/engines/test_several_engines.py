"""Requests through a gateway with two engines, of which one dies, restarts or hangs."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from conftest import QUESTION, Running, run_gateway, wait_until
from engine_process import EngineProcess

from gateway.engines.engine import EngineState


@dataclass
class Pair:
    """A gateway and its two engines."""

    gateway: Running
    processes: list[EngineProcess]

    def state(self, process: EngineProcess) -> EngineState:
        return self.gateway.context.deployment.engines[process.url]

    async def ask(self, conversation: int, **fields: object) -> EngineProcess:
        """One request of a conversation; the engine that answered it."""
        before = [len(process.requests) for process in self.processes]
        await self.gateway.ask({"x-prefloop-conversation": f"conversation {conversation}"}, **fields)
        after = [len(process.requests) for process in self.processes]
        return self.processes[0 if after[0] > before[0] else 1]

    async def find_conversation(self, home: EngineProcess) -> int:
        """One whose engine this is."""
        conversation = 0
        while await self.ask(conversation) is not home:
            conversation += 1
        return conversation


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    processes = [EngineProcess(), EngineProcess()]
    for process in processes:
        await process.start()
    urls = [process.url for process in processes]
    async with run_gateway(tmp_path, engines=urls, hang_s=0.5, reconcile_s=0.1, breaker_backoff_s=0.1) as gateway:
        pair = Pair(gateway, processes)
        await wait_until(lambda: all(pair.state(process).proven for process in processes))
        yield pair
    for process in processes:
        await process.kill()


async def test_a_conversation_stays_with_its_engine_and_conversations_spread(pair: Pair) -> None:
    homes = {i: await pair.ask(i) for i in range(12)}
    assert {id(home) for home in homes.values()} == {id(process) for process in pair.processes}
    for i, home in homes.items():
        assert await pair.ask(i) is home


async def test_no_request_fails_when_an_engine_dies_and_it_answers_again_after_it_has_proven_itself(pair: Pair) -> None:
    victim, other = pair.processes
    for process in pair.processes:
        process.delay_s = 0.2
    asked = [asyncio.create_task(pair.gateway.ask({"x-prefloop-conversation": str(i)})) for i in range(16)]
    await wait_until(lambda: len(victim.requests) > 2)
    await victim.kill()
    assert all(answer["choices"] for answer in await asyncio.gather(*asked))
    assert not pair.state(victim).is_usable
    for process in pair.processes:
        process.delay_s = 0.0
    assert await pair.ask(1) is other
    await victim.restart()
    await wait_until(lambda: pair.state(victim).is_usable and pair.state(victim).proven)
    num_before = len(victim.requests)
    for i in range(12):
        await pair.ask(i)
    assert len(victim.requests) > num_before
    assert pair.gateway.context.deployment.all_in_flight() == {}


async def test_requests_that_wait_on_an_engine_that_hangs_are_answered_by_the_other(pair: Pair) -> None:
    victim, other = pair.processes
    conversation = await pair.find_conversation(victim)
    victim.delay_s, victim.is_hung = 3600.0, True
    async with asyncio.timeout(8):
        answer = await pair.gateway.ask({"x-prefloop-conversation": f"conversation {conversation}"})
    assert answer["choices"] and pair.state(victim).is_hung
    assert await pair.ask(conversation) is other
    victim.delay_s, victim.is_hung = 0.0, False
    await wait_until(lambda: pair.state(victim).is_usable)
    assert await pair.ask(conversation) is victim


async def test_an_engine_that_fails_again_and_again_is_spared_until_its_trial(pair: Pair) -> None:
    victim, other = pair.processes
    conversation = await pair.find_conversation(victim)
    victim.num_500 = 1000
    victim.probe_logprobs = [0.0, 0.0, 0.0]
    assert await pair.ask(conversation) is not None
    await wait_until(lambda: not pair.state(victim).is_usable)
    num_before = len(victim.requests)
    assert await pair.ask(conversation) is other
    assert len(victim.requests) == num_before


async def test_a_client_that_stops_reading_does_not_make_its_engine_hang(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, hang_s=0.3, reconcile_s=0.05) as gateway:
        [state] = gateway.context.deployment.states
        gateway.engine.num_words = 400_000  # more than all buffers hold
        port = int(gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = msgspec.json.encode({**QUESTION, "stream": True})
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b"
            % (gateway.key.encode(), len(body), body)
        )
        await reader.readuntil(b"data: ")
        written = -1
        async with asyncio.timeout(20):
            while gateway.engine.num_written != written:  # until it waits
                written = gateway.engine.num_written
                await asyncio.sleep(0.2)
        await asyncio.sleep(0.6)
        assert state.num_in_flight == 1 and state.is_usable and not state.is_hung
        async with asyncio.timeout(20):
            while gateway.engine.num_written == written:
                await reader.read(1_000_000)
        assert state.is_usable
        writer.transport.abort()
        await wait_until(lambda: state.num_in_flight == state.num_paused == 0)
