"""Two gateways on one PostgreSQL, one engine behind them: what a client began at one goes on at the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from conftest import QUESTION, Running, run_gateway, wait_until

from feedback.signals import signals
from prefloop.servers.postgres import Postgres
from tests.postgres import run_server

Two = tuple[Running, Running]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with run_server() as server:
        yield server


@pytest.fixture
async def two(tmp_path: Path, server: Postgres, request: pytest.FixtureRequest) -> AsyncIterator[Two]:
    """The second one's engine is the first one's: both serve what the first published."""
    url = server.create_database(f"several_{abs(hash(request.node.name)) % 10**9}")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            run_gateway(tmp_path, database_url=url, playground_requests_per_minute=4)
        )
        other = run_gateway(
            tmp_path,
            database_url=url,
            has_checkpoint=False,
            engines=[f"http://127.0.0.1:{first.engine_port}"],
            playground_requests_per_minute=4,
            max_asks_per_user_day=1,
        )
        second = await stack.enter_async_context(other)
        await wait_until(lambda: second.context.deployment.view.stable is not None)
        yield first, second


async def ask(gateway: Running, key: str, **headers: str) -> tuple[int, dict[str, object]]:
    auth = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with gateway.http.post(f"{gateway.url}/v1/chat/completions", json=QUESTION, headers=auth) as answer:
        return answer.status, dict(await answer.json())


async def wait_until_known(gateway: Running, key: str, *, is_known: bool = True) -> None:
    """Keys are read again every five seconds."""
    async with asyncio.timeout(20):
        while ((await ask(gateway, key))[0] != 401) != is_known:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_a_pair_of_one_gateway_is_chosen_at_another_and_once_only(two: Two) -> None:
    first, second = two
    comparison = (await first.ask({"x-prefloop-compare": "always"}))["comparison"]
    status, said = await second.choose(comparison, preferred="second")
    assert (status, said["preferred"]) == (200, "second")
    assert (await first.choose(comparison, preferred="second"))[0] == 200
    assert (await first.choose(comparison, preferred="first"))[0] == 409


async def test_a_signal_on_an_answer_of_one_gateway_is_taken_by_another(two: Two) -> None:
    first, second = two
    for headers in ({}, {"x-prefloop-compare": "always"}):
        answer = await first.ask(headers)
        url = f"{second.url}/v1/completions/{answer['id']}/signal"
        async with second.http.post(url, json={"thumb": "up", "index": 0}, headers=first.auth) as taken:
            assert taken.status == 200, await taken.text()
    assert [row["checkpoint"] for row in await list_signals(second)] == [first.context.deployment.view.stable] * 2


async def list_signals(gateway: Running) -> list[dict[str, object]]:
    """The signals that were stored; one on an answer that nobody recorded names no checkpoint."""

    def read(conn):  # type: ignore[no-untyped-def]
        return [dict(row) for row in conn.execute(signals.select()).mappings()]

    return list(await gateway.context.writer.arun(read))


async def test_a_key_that_one_gateway_made_works_at_the_other_with_its_first_request(two: Two) -> None:
    first, second = two
    for path in ("/v1/chat/completions", "/v1/models"):
        await asyncio.sleep(1.1)  # an unknown key is looked for once a second
        key = await first.make_key(name=f"new-for-{path}")
        auth = {"authorization": f"Bearer {key}"}
        method, body = ("POST", QUESTION) if path.endswith("completions") else ("GET", None)
        async with second.http.request(method, f"{second.url}{path}", json=body, headers=auth) as answer:
            assert answer.status == 200, (path, await answer.text())


async def test_a_key_that_is_revoked_at_one_gateway_stops_working_at_the_other(two: Two) -> None:
    first, second = two
    key = await first.make_key(name="short-lived")
    await wait_until_known(second, key)
    async with first.http.delete(f"{first.url}/operator/v1/keys/{key.split('_')[1]}", headers=first.admin) as answer:
        assert answer.status in (200, 204), await answer.text()
    await wait_until_known(second, key, is_known=False)


async def test_a_limit_holds_over_both_gateways(two: Two) -> None:
    first, second = two
    body = {"name": "limited", "scope": "app", "limits": {"requests_per_minute": 6}}
    async with first.http.post(f"{first.url}/operator/v1/keys", json=body, headers=first.admin) as answer:
        key = str((await answer.json())["key"])
    await wait_until_known(second, key)
    statuses = [(await ask((first, second)[i % 2], key))[0] for i in range(11)]
    assert statuses.count(200) == 5 and set(statuses[5:]) == {429}, statuses  # one was spent while waiting


async def test_the_playgrounds_limit_holds_over_both_gateways(two: Two) -> None:
    statuses = []
    for i in range(10):
        gateway = two[i % 2]
        body = {"messages": QUESTION["messages"]}
        async with gateway.http.post(f"{gateway.url}/playground/chat", json=body) as answer:
            statuses.append(answer.status)
            await answer.read()
    assert statuses[:4] == [200] * 4 and statuses.count(200) < 8, statuses  # four a minute, of both together


async def test_a_user_who_was_asked_or_skipped_at_one_gateway_is_left_in_peace_by_the_other(two: Two) -> None:
    first, second = two
    shown = (await first.ask({"x-prefloop-compare": "auto", "x-prefloop-user": "ann"}))["comparison"]
    await first.ask({"x-prefloop-compare": "auto", "x-prefloop-user": "ben"})
    ann = next(iter(first.context.asks._asked))
    assert (await first.choose(shown, preferred="skip"))[0] == 200
    ledger, now = second.context.asks, time.time()
    await wait_until(lambda: ledger.num_asked(ann, now) == 1 and ledger.is_quiet(ann, now) and len(ledger._asked) == 2)
    assert first.context.asks.num_asked(ann, now) == 1  # its own, once
    for name in ("ann", "ben"):
        assert "comparison" not in await second.ask({"x-prefloop-compare": "auto", "x-prefloop-user": name})
    assert "comparison" in await second.ask({"x-prefloop-compare": "auto", "x-prefloop-user": "eve"})


async def test_a_gateway_that_starts_again_remembers_who_was_asked(tmp_path: Path) -> None:
    headers = {"x-prefloop-compare": "auto", "x-prefloop-user": "ann"}
    async with run_gateway(tmp_path, max_asks_per_user_day=1) as gateway:
        assert "comparison" in await gateway.ask(headers)
        assert "comparison" not in await gateway.ask(headers)
    async with run_gateway(tmp_path, max_asks_per_user_day=1, has_checkpoint=False) as gateway:
        await wait_until(lambda: gateway.context.deployment.view.stable is not None)
        await wait_until(lambda: len(gateway.context.asks._asked) == 1)
        assert "comparison" not in await gateway.ask(headers)
