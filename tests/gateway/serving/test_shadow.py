"""What the canary is asked behind stable's back: after its answer, so many at once, seen by the guardrails and by nobody else."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import QUESTION, Running, run_gateway, start_engine, wait_until
from engine import FakeEngine
from pairs.test_observed import Kept

from gateway.engines.deployment import ServingView
from gateway.serving.shadow import count_tokens


class Held(FakeEngine):
    """Answers for the canary only once it may, and with 500 if it fails."""

    canary = ""
    fails = fails_stable = False

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def _answer(self, request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        if body["model"] == self.canary:
            await self.may_answer.wait()
            if self.fails:
                return web.json_response({"error": {"message": "no"}}, status=500)
        elif self.fails_stable:
            return web.json_response({"error": {"message": "no"}}, status=500)
        return await super()._answer(request, body, rank)

    @property
    def num_shadows(self) -> int:
        return sum(body["model"] == self.canary for body in self.requests)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    engine = Held()
    runner, port = await start_engine(engine)
    async with run_gateway(tmp_path, engines=[f"http://127.0.0.1:{port}"], connect_wait_s=0.2) as running:
        running.engine = engine
        yield running
    await runner.cleanup()


async def start_shadowing(gateway: Running, *, share: float = 1.0, is_held: bool = False) -> tuple[Kept, Held]:
    engine = gateway.engine
    assert isinstance(engine, Held)
    view = gateway.context.deployment.view
    stable = view.stable or ""
    engine.canary = stable.replace("c-000000", "c-000001")
    engine.adapters.add(engine.canary)
    if not is_held:
        engine.may_answer.set()
    gateway.context.controller.observations = kept = Kept()
    await gateway.serve(
        ServingView(
            view.generation + 1000, stable, engine.canary, observed="r-1", shadow_share=share, max_shadows=2,
        )
    )  # fmt: skip
    return kept, engine


async def ask(gateway: Running, user: str, **fields: Any) -> int:
    headers = {**gateway.auth, "x-prefloop-user": user}
    async with gateway.http.post(
        f"{gateway.url}/v1/chat/completions", json={**QUESTION, **fields}, headers=headers
    ) as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_canary_is_asked_what_stable_has_answered(gateway: Running, is_stream: bool) -> None:
    kept, engine = await start_shadowing(gateway)
    assert await ask(gateway, "ann", stream=is_stream) == 200
    await wait_until(lambda: len(kept.rows) == 2)
    assert [row[1:] for row in kept.rows] == [("stable", "duel", False), ("canary", "duel", False)]
    assert [body["model"] for body in engine.requests] == [gateway.context.deployment.view.stable, engine.canary]
    assert {**engine.requests[0], "model": ""} == {**engine.requests[1], "model": ""}
    assert engine.headers[1]["x-request-id"] == engine.headers[0]["x-request-id"] + "-shadow"
    stable, canary = kept._fresh
    assert stable.length == canary.length is not None and (stable.truncated, canary.refused) == (False, False)
    assert (stable.latency_first_s is not None) is is_stream is (canary.latency_first_s is not None)
    assert gateway.context.deployment.all_in_flight() == {}
    assert await ask(gateway, "ann", stream=is_stream) == 200  # one answer of a user is enough
    assert await ask(gateway, "bob", stream=is_stream) == 200
    await wait_until(lambda: len(kept.rows) == 4)
    assert engine.num_shadows == 2


async def test_nobody_waits_for_the_canary_and_so_many_are_asked_at_once(gateway: Running) -> None:
    kept, engine = await start_shadowing(gateway, is_held=True)
    for user in range(5):
        assert await ask(gateway, f"u{user}") == 200
    await wait_until(lambda: engine.num_shadows == 2)
    assert gateway.context.shadows.num_left_out == 3 and kept.rows == []
    engine.may_answer.set()
    await wait_until(lambda: len(kept.rows) == 4)
    assert await ask(gateway, "u4") == 200  # there is room again
    await wait_until(lambda: len(kept.rows) == 6)


async def test_a_shadow_that_fails_is_an_error_of_the_canary_and_nobodys_failed_request(gateway: Running) -> None:
    kept, engine = await start_shadowing(gateway)
    engine.fails = True
    assert await ask(gateway, "ann") == 200
    await wait_until(lambda: len(kept.rows) == 2)
    assert [row[1:] for row in kept.rows] == [("stable", "duel", False), ("canary", "duel", True)]
    assert gateway.context.deployment.counters.failed_requests == 0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_stable_fails_at_is_shadowed_too(gateway: Running, is_stream: bool) -> None:
    kept, engine = await start_shadowing(gateway)
    engine.fails_stable = True
    assert await ask(gateway, "ann", stream=is_stream) == 503
    await wait_until(lambda: len(kept.rows) == 2)
    assert [row[1:] for row in kept.rows] == [("stable", "duel", True), ("canary", "duel", False)]


async def test_what_says_nothing_of_the_canary_is_not_observed(gateway: Running) -> None:
    kept, engine = await start_shadowing(gateway)
    engine.adapters.discard(engine.canary)  # 404: the engine has forgotten it
    assert await ask(gateway, "ann") == 200
    await wait_until(lambda: engine.num_shadows == 1)
    engine.fail_ranks = {len(engine.requests)}  # the client's own mistake
    assert await ask(gateway, "bob") == 400
    await wait_until(lambda: gateway.context.deployment.all_in_flight() == {})
    assert kept.rows == [] and engine.num_shadows == 1


async def test_without_a_share_nothing_is_shadowed(gateway: Running) -> None:
    kept, engine = await start_shadowing(gateway, share=0.0)
    assert await ask(gateway, "ann") == 200
    assert engine.num_shadows == 0 and kept.rows == []


def test_a_whole_answers_tokens_are_read_at_its_end() -> None:
    assert count_tokens(b'{"usage":{"prompt_tokens":5,"completion_tokens": 41}}') == 41
    assert count_tokens(b'{"completion_tokens":7}' + b" " * 2000) == count_tokens(b"{}") == 0
