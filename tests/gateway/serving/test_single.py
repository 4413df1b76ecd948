"""Single answers on their shortest way, and what leaves it."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from conftest import QUESTION, Running, wait_until

from gateway.serving import single

URL = "/v1/chat/completions"


async def ask(gateway: Running, **fields: Any) -> tuple[int, dict[str, Any]]:
    async with gateway.http.post(gateway.url + URL, json={**QUESTION, **fields}, headers=gateway.auth) as answer:
        return answer.status, await answer.json()


async def test_an_answer_takes_the_short_way_once_a_connection_is_idle(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await ask(gateway))[0] == 200  # opens the connection

    async def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(single, "ask_engine", never)
    status, answer = await ask(gateway)
    assert (status, answer["model"]) == (200, "default")
    counters = gateway.context.deployment.counters
    assert (counters.requests, counters.num_in_flight, counters.failed_requests) == (2, 0, 0)
    assert gateway.context.deployment.all_in_flight() == {}


async def test_a_client_that_leaves_on_the_short_way_frees_its_engine(gateway: Running) -> None:
    assert (await ask(gateway))[0] == 200
    gateway.engine.delay_s = 30.0
    asking = asyncio.create_task(ask(gateway))
    await wait_until(lambda: len(gateway.engine.requests) == 2)
    asking.cancel()
    deployment = gateway.context.deployment
    await wait_until(lambda: deployment.counters.num_in_flight == 0)
    assert deployment.all_in_flight() == {} and deployment.counters.failed_requests == 0
    (state,) = deployment.states
    assert state.num_in_flight == 0


async def test_what_is_not_as_usual_is_gone_on_with_and_counted_once(gateway: Running) -> None:
    assert (await ask(gateway))[0] == 200
    status, refused = await ask(gateway, model="no-such-model")
    assert status == 404 and refused["error"]["code"] == "model_not_found"
    gateway.engine.adapters.clear()  # 404 to the next request, until it is loaded again
    status, _ = await ask(gateway)
    assert status == 200
    counters = gateway.context.deployment.counters
    assert (counters.requests, counters.num_in_flight, counters.failed_requests) == (3, 0, 0)
    assert gateway.context.deployment.all_in_flight() == {}


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_status_without_an_answer_is_the_engines_failure(
    gateway: Running, status: int, is_stream: bool
) -> None:
    async def say_nothing(*_: Any) -> web.Response:
        return web.Response(status=status)

    gateway.engine._answer = say_nothing  # type: ignore[method-assign]
    for _ in range(2):  # the same connection: nothing of the first answer is read as the second
        refused, answer = await ask(gateway, stream=is_stream)
        assert (refused, answer["error"]["code"]) == (503, "engine_error")
