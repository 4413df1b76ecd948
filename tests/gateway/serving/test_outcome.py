"""How every answer ended, on every path, and what was counted of it: one table."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from conftest import QUESTION, Running, run_gateway, start_engine, wait_until
from engine import FakeEngine
from pairs.test_observed import start_trial

from gateway.serving import attempts

Answer = Callable[[web.Request, dict[str, Any], int], Awaitable[web.StreamResponse]]

PATHS = {
    "single": ("/v1/chat/completions", {}, "never"),
    "stream": ("/v1/chat/completions", {"stream": True}, "never"),
    "pair": ("/v1/chat/completions", {}, "always"),
    "paired stream": ("/v1/chat/completions", {"stream": True}, "always"),
    "embeddings": ("/v1/embeddings", {"input": "Hi."}, "never"),
}


class Ending(NamedTuple):
    """What the engine does, what the client gets, and what is counted for each answer."""

    name: str
    answer: Callable[[Running], Answer]
    status: int  # of a whole answer; a stream that broke has 200
    code: int
    has_failed: bool
    is_seen: bool  # by the guardrails


def refuse(status: int) -> Callable[[Running], Answer]:
    def build(gateway: Running) -> Answer:
        async def answer(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
            return web.json_response({"error": {"message": "no"}}, status=status)

        return answer

    return build


def drop(gateway: Running) -> Answer:
    async def answer(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    return answer


def hang(gateway: Running) -> Answer:
    async def answer(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    return answer


def as_usual(gateway: Running) -> Answer:
    return FakeEngine._answer.__get__(gateway.engine)


def fail_once(gateway: Running) -> Answer:
    failed: set[str] = set()

    async def answer(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        half = request.headers["x-request-id"]
        if half not in failed:
            failed.add(half)
            return web.json_response({"error": {"message": "once"}}, status=500)
        return await as_usual(gateway)(request, body, rank)

    return answer


ENDINGS = [
    Ending("well", as_usual, 200, 200, False, True),
    Ending("400", refuse(400), 400, 400, False, False),
    Ending("422", refuse(422), 422, 422, False, False),
    Ending("401", refuse(401), 503, 503, True, True),
    Ending("403", refuse(403), 503, 503, True, True),
    Ending("204", refuse(204), 503, 503, True, True),
    Ending("304", refuse(304), 503, 503, True, True),
    Ending("500", refuse(500), 503, 503, True, True),
    Ending("503", refuse(503), 503, 503, True, True),
    Ending("dropped", drop, 503, 503, True, True),
    Ending("late", hang, 504, 504, True, True),
    Ending("retried", fail_once, 200, 200, True, True),
]


class EveryPath(FakeEngine):
    """Answers on other paths as it does to a chat."""

    def build(self) -> web.Application:
        app = super().build()
        for path in ("/v1/embeddings", "/tokenize"):
            app.router.add_post(path, self._chat)
        return app


@pytest.fixture
async def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(attempts, "_MAX_INTERNAL_ERRORS", 1)
    monkeypatch.setattr(attempts, "_FIRST_PAUSE_S", 0.01)
    times = {"connect_wait_s": 0.05, "first_byte_timeout_s": 0.3, "answer_timeout_s": 0.3}
    engine = EveryPath()
    runner, port = await start_engine(engine)
    times |= {"max_asks_per_user_day": 1000, "breaker_failures": 1000}
    async with run_gateway(tmp_path, engines=[f"http://127.0.0.1:{port}"], **times) as running:
        running.engine = engine
        yield running
    await runner.cleanup()


async def ask(gateway: Running, way: str, user: str, **headers: str) -> int:
    path, fields, compare = PATHS[way]
    own = {**gateway.auth, "x-prefloop-compare": compare, "x-prefloop-user": user, **headers}
    async with gateway.http.post(gateway.url + path, json={**QUESTION, **fields}, headers=own) as answer:
        await answer.read()
        return answer.status


def counted(gateway: Running) -> dict[tuple[str, int], int]:
    return dict(gateway.context.metrics._num_answers)


def difference(after: dict[Any, int], before: dict[Any, int]) -> dict[Any, int]:
    return {key: num - before.get(key, 0) for key, num in after.items() if num != before.get(key, 0)}


@pytest.mark.parametrize("way", PATHS)
async def test_every_answer_is_counted_once_by_how_it_ended(gateway: Running, way: str) -> None:
    seen, _ = await start_trial(gateway)
    counters = gateway.context.deployment.counters
    is_pair = "pair" in way
    wrong = {}
    for ending in ENDINGS:
        gateway.engine._answer = ending.answer(gateway)  # type: ignore[method-assign]
        before, failed, seen._fresh = counted(gateway), counters.failed_requests, []
        status = await ask(gateway, way, f"user of {ending.name}")
        await wait_until(lambda: counters.num_in_flight == 0)
        arms = {("stable", ending.code): 1} | ({("canary", ending.code): 1} if is_pair else {})
        is_seen = ending.is_seen and way != "embeddings"
        expected = (ending.status, arms, int(ending.status >= 500), [ending.has_failed] * (1 + is_pair) * is_seen)
        found = (
            status,
            difference(counted(gateway), before),
            counters.failed_requests - failed,
            [error for *_, error in seen.rows],
        )
        if found != expected:
            wrong[ending.name] = f"found {found}, expected {expected}"
    assert wrong == {}


@pytest.mark.parametrize("way", ["stream", "paired stream"])
async def test_a_stream_that_breaks_is_counted_as_the_arms_failure(gateway: Running, way: str) -> None:
    seen, _ = await start_trial(gateway)
    before = counted(gateway)
    gateway.engine.break_after = 2
    assert await ask(gateway, way, "ann") == 200
    counters = gateway.context.deployment.counters
    await wait_until(lambda: counters.num_in_flight == 0)
    codes = difference(counted(gateway), before)
    assert codes.get(("stable", 502), 0) + codes.get(("canary", 502), 0) >= 1
    assert sum(codes.values()) == (2 if way == "paired stream" else 1)
    assert counters.failed_requests == 1 and any(error for *_, error in seen.rows)


@pytest.mark.parametrize("way", PATHS)
async def test_a_client_that_leaves_is_counted_as_gone_and_says_nothing(gateway: Running, way: str) -> None:
    await ask(gateway, way, "somebody")  # opens the connection
    seen, _ = await start_trial(gateway)
    before = counted(gateway)
    gateway.engine.delay_s = 30.0
    num_requests = len(gateway.engine.requests)
    asking = asyncio.create_task(ask(gateway, way, "ann"))
    await wait_until(lambda: len(gateway.engine.requests) > num_requests + ("pair" in way))
    asking.cancel()
    counters = gateway.context.deployment.counters
    await wait_until(lambda: counters.num_in_flight == 0)
    assert {code for _, code in difference(counted(gateway), before)} == {499}
    assert counters.failed_requests == 0 and seen.rows == []


async def test_what_we_refuse_is_counted_under_no_arm(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, max_body_bytes=2000, body_timeout_s=0.2) as gateway:
        url, good = f"{gateway.url}/v1/chat/completions", gateway.auth
        limited = {"name": "few", "scope": "app", "limits": {"requests_per_minute": 1}}
        async with gateway.http.post(f"{gateway.url}/operator/v1/keys", json=limited, headers=gateway.admin) as made:
            few = {"authorization": f"Bearer {(await made.json())['key']}"}
        before = counted(gateway)

        async def post(body: Any, headers: dict[str, str]) -> int:
            async with gateway.http.post(url, data=body, headers=headers) as answer:
                return answer.status

        fine = b'{"model":"default","messages":[{"role":"user","content":"Hi."}]}'
        statuses = [
            await post(fine, {}),
            await post(b"{", good),
            await post(fine.replace(b"default", b"nothing"), good),
            await post(b" " * 3000, good),
            await post(fine, few),
            await post(fine, few),
        ]
        assert statuses == [401, 400, 404, 413, 200, 429]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12")
        assert b" 408 " in await reader.readline()
        writer.close()
        found = difference(counted(gateway), before)
        refused = {("none", code): 1 for code in (401, 400, 404, 413, 429, 408)}
        assert found == {**refused, ("stable", 200): 1}
        assert gateway.context.deployment.counters.num_in_flight == 0


@pytest.mark.parametrize("way", ["single", "pair"])
async def test_an_error_of_our_own_is_counted(gateway: Running, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    before = counted(gateway)
    monkeypatch.setattr(gateway.context.deployment, "view", None)
    assert await ask(gateway, way, "ann") == 500
    assert difference(counted(gateway), before) == {("none", 500): 1}
    assert gateway.context.deployment.counters.failed_requests == 1


@pytest.mark.parametrize("way", ["single", "stream", "pair", "paired stream"])
async def test_a_request_that_kills_its_engines_is_stopped_after_the_second(tmp_path: Path, way: str) -> None:
    engines = [FakeEngine() for _ in range(3)]
    runners = [await start_engine(engine) for engine in engines]
    urls = [f"http://127.0.0.1:{port}" for _, port in runners]
    try:
        async with run_gateway(tmp_path, engines=urls, reconcile_s=0.05, breaker_backoff_s=0.05) as gateway:
            killed = []

            def die(engine: FakeEngine) -> Answer:
                async def answer(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
                    killed.append(engine)
                    assert request.transport is not None
                    request.transport.close()
                    return web.Response()

                return answer

            stable = gateway.context.deployment.view.stable
            await wait_until(lambda: all(stable in engine.adapters for engine in engines))
            for engine in engines:
                engine._answer = die(engine)  # type: ignore[method-assign]
            path, fields, compare = PATHS[way]
            headers = {**gateway.auth, "x-prefloop-compare": compare, "x-prefloop-user": "ann"}
            async with gateway.http.post(gateway.url + path, json={**QUESTION, **fields}, headers=headers) as answer:
                body = await answer.json()
            assert (answer.status, body["error"]["code"]) == (503, "engine_lost_twice")
            assert answer.headers["x-should-retry"] == "false"
            assert len({id(engine) for engine in killed}) <= 2
            assert gateway.context.metrics.registry.get_sample_value("prefloop_requests_stopped_total") == 1
    finally:
        for runner, _ in runners:
            await runner.cleanup()


async def test_only_generating_requests_are_observed(gateway: Running) -> None:
    seen, _ = await start_trial(gateway, duel_share=0.0)
    for path in ("/tokenize", "/v1/embeddings"):
        async with gateway.http.post(
            gateway.url + path, json={**QUESTION, "input": "x"}, headers={**gateway.auth, "x-prefloop-user": "ann"}
        ) as answer:
            assert answer.status == 200
    assert seen.rows == []
    assert await ask(gateway, "single", "ann") == 200
    assert len(seen.rows) == 1


@pytest.mark.parametrize("way", ["single", "stream", "pair"])
async def test_refusals_are_counted_as_the_gates_sensor_sees_them(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The words refuse, and the engine's field does not say so."""
    await start_trial(gateway)
    monkeypatch.setattr("gateway.serving.metrics.READ_EVERY_S", 0.0)
    answer = gateway.engine._answer

    async def refuse_in_words(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        return await answer(request, {**body, "seed": "1. I can't help with that"}, rank)

    gateway.engine._answer = refuse_in_words  # type: ignore[method-assign]
    assert await ask(gateway, way, "ann") == 200
    counters = gateway.context.deployment.counters
    await wait_until(lambda: counters.num_in_flight == 0)
    registry = gateway.context.metrics.registry

    def read(name: str, arm: str) -> float | None:
        return registry.get_sample_value(f"prefloop_{name}_total", {"arm": arm})

    for arm in ("stable", "canary")[: 1 + (way == "pair")]:
        assert (read("refusal_reads", arm), read("refusals_read", arm), read("refusals", arm)) == (1, 1, 0)


async def test_words_are_read_so_many_times_a_second_and_no_more(gateway: Running) -> None:
    metrics = gateway.context.metrics
    times = [100.0 + number / 1000 for number in range(1000)]
    assert sum(map(metrics.may_read, times)) == 50
