"""Users do not pay for a canary: what it fails at before its first byte, stable answers, and it is booked against the canary."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import QUESTION, Running, run_gateway, start_engine
from engine import FakeEngine
from pairs.test_observed import Kept, start_trial


class BadCanary(FakeEngine):
    """Answers as ever, but for one checkpoint, which fails with a status. asked: how often for it."""

    bad = ""
    status = 500
    num_asked = 0

    async def _answer(self, request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        if body["model"] == self.bad:
            self.num_asked += 1
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        return await super()._answer(request, body, rank)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    engine = BadCanary()
    runner, port = await start_engine(engine)
    async with run_gateway(
        tmp_path, engines=[f"http://127.0.0.1:{port}"], connect_wait_s=0.1, breaker_failures=1000
    ) as running:
        running.engine = engine
        yield running
    await runner.cleanup()


async def start_bad_trial(gateway: Running, *, is_baking: bool = False, stable_is_bad: bool = False) -> Kept:
    """Everybody is the canary's; while baking, it is what serves, and the old one is kept for nobody."""
    kept, canary = await start_trial(gateway, duel_share=0.0)
    view = gateway.context.deployment.view
    stable = view.stable or ""
    assert isinstance(gateway.engine, BadCanary)
    gateway.engine.bad = stable if stable_is_bad else canary
    view = replace(view, generation=view.generation + 1, weight=1.0)
    if is_baking:
        view = replace(view, stable=canary, canary=stable, weight=0.0, is_baking=True)
    await gateway.serve(view)
    return kept


async def ask(gateway: Running, **fields: Any) -> tuple[int, bytes]:
    headers = {**gateway.auth, "x-prefloop-user": "ann"}
    async with gateway.http.post(
        f"{gateway.url}/v1/chat/completions", json={**QUESTION, **fields}, headers=headers
    ) as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_baking", [False, True])
@pytest.mark.parametrize("status", [500, 503, 403])
async def test_stable_answers_for_a_canary_that_fails(
    gateway: Running, is_stream: bool, is_baking: bool, status: int
) -> None:
    kept = await start_bad_trial(gateway, is_baking=is_baking)
    gateway.engine.status = status  # type: ignore[attr-defined]
    answer = await ask(gateway, stream=is_stream)
    assert answer[0] == 200 and b'finish_reason":"stop' in answer[1].replace(b": ", b":")
    assert kept.rows == [("ann", "canary", "single", True)] or [row[1:] for row in kept.rows] == [
        ("canary", "single", True)
    ]
    assert gateway.context.deployment.counters.failed_requests == 0
    if status == 500:
        assert gateway.engine.num_asked == 1  # type: ignore[attr-defined]  # an error of its own is not tried again


async def test_where_stable_fails_too_the_client_is_told_once(gateway: Running) -> None:
    await start_bad_trial(gateway)
    gateway.engine.adapters.discard(gateway.context.deployment.view.stable)
    gateway.engine.num_500 = 100
    status, _ = await ask(gateway)
    assert status == 503 and gateway.context.deployment.counters.failed_requests == 1


async def test_nobody_answers_for_stable(gateway: Running) -> None:
    await start_bad_trial(gateway, stable_is_bad=True)
    view = gateway.context.deployment.view
    await gateway.serve(replace(view, generation=view.generation + 1, weight=0.0))
    status, _ = await ask(gateway)
    assert status == 503
