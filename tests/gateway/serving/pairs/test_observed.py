"""What the rollout's guardrails hear of pairs: both halves of a duel or neither, and of any other pair one answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import QUESTION, Running, run_gateway, wait_until

from feedback.duels import FailedDuel
from gateway.engines.deployment import ServingView
from gateway.rollout.observations import Observations
from gateway.serving import attempts
from gateway.tables.rows import Answered, Divergence, Observation


class Kept(Observations):
    """Observes the trial of the test, and keeps what the controller would store."""

    def __init__(self) -> None:
        super().__init__()
        super().begin("r-1", 0.5)

    def begin(
        self, rollout: str | None, weight: float, seen: Iterable[tuple[str, str, Answered]] | None = None
    ) -> None:
        """The controller, which knows of no rollout, would end it."""

    def drain(self) -> tuple[list[Observation], list[FailedDuel], list[Divergence]]:
        return [], [], []

    @property
    def failed(self) -> list[tuple[str, int]]:
        """(user, outcome) of the duels with a failed candidate."""
        return [(duel.user, duel.outcome) for duel in self._failed]

    @property
    def rows(self) -> list[tuple[str, str, str, bool]]:
        """(user, arm, answered, error)"""
        return [(o.user, o.arm, o.answered, o.error) for o in self._fresh]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with run_gateway(tmp_path, connect_wait_s=0.2) as running:
        yield running


async def start_trial(gateway: Running, duel_share: float = 1.0) -> tuple[Kept, str]:
    """What is noted from now on, and the canary."""
    view = gateway.context.deployment.view
    stable = view.stable or ""
    canary = stable.replace("c-000000", "c-000001")
    gateway.engine.adapters.add(canary)
    gateway.context.controller.observations = kept = Kept()
    await gateway.serve(ServingView(view.generation + 1000, stable, canary, 0.0, duel_share, b"salt", "r-1", "r-1"))
    return kept, canary


async def ask(gateway: Running, user: str, compare: str = "always", **fields: Any) -> int:
    headers = {**gateway.auth, "x-prefloop-compare": compare, "x-prefloop-user": user}
    async with gateway.http.post(
        f"{gateway.url}/v1/chat/completions", json={**QUESTION, **fields}, headers=headers
    ) as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_canary_that_fails_before_its_first_byte_is_heard_of(gateway: Running, is_stream: bool) -> None:
    kept, canary = await start_trial(gateway)
    answer = gateway.engine._answer

    async def fail_canary(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        if body["model"] == canary:
            return web.json_response({"error": {"message": "it is broken"}}, status=500)
        return await answer(request, body, rank)

    gateway.engine._answer = fail_canary  # type: ignore[method-assign]
    assert await ask(gateway, "ann", stream=is_stream) == 200
    user = kept.rows[0][0]
    assert sorted(kept.rows) == [(user, "canary", "duel", True), (user, "stable", "duel", False)]
    assert kept.failed == [(user, -1)]  # it has lost, without anybody's choice


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_is_there_is_not_kept_for_an_engine_that_is_away(
    tmp_path: Path, is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_WAIT_BESIDE_OTHER_S", 0.3)
    async with run_gateway(tmp_path, connect_wait_s=30.0) as gateway:
        _, canary = await start_trial(gateway)
        answer = gateway.engine._answer

        async def be_away(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
            return web.Response(status=503) if body["model"] == canary else await answer(request, body, rank)

        gateway.engine._answer = be_away  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            assert await ask(gateway, "ann", stream=is_stream) == 200


async def test_of_two_streams_that_break_with_their_engine_both_are_heard_of(gateway: Running) -> None:
    kept, _ = await start_trial(gateway)
    gateway.engine.break_after = 2
    for number in range(6):
        await ask(gateway, f"user-{number}", stream=True)
    assert len(kept.rows) == 12
    assert {(arm, answered) for _, arm, answered, _ in kept.rows} == {("canary", "duel"), ("stable", "duel")}
    assert sum(error for _, _, _, error in kept.rows) >= 6


async def test_a_duel_whose_client_leaves_says_nothing_and_the_users_next_request_does(gateway: Running) -> None:
    kept, _ = await start_trial(gateway)
    gateway.engine.num_words = 3000
    asking = asyncio.create_task(ask(gateway, "ann", stream=True))
    await wait_until(lambda: gateway.engine.num_written > 20_000)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await wait_until(lambda: gateway.context.deployment.counters.num_in_flight == 0)
    assert kept.rows == []
    await ask(gateway, "ann", "never")
    assert [row[1:] for row in kept.rows] == [("stable", "single", False)]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_two_answers_of_one_arm_count_as_one(gateway: Running, is_stream: bool) -> None:
    kept, _ = await start_trial(gateway, duel_share=0.0)
    await ask(gateway, "ann", stream=is_stream)
    assert [row[1:] for row in kept.rows] == [("stable", "explore", False)]


async def test_a_streamed_pair_that_is_left_early_costs_its_key_what_was_drawn(gateway: Running) -> None:
    body = {"name": "limited", "scope": "app", "pairs": True, "limits": {"tokens_per_day": 100_000}}
    async with gateway.http.post(f"{gateway.url}/operator/v1/keys", json=body, headers=gateway.admin) as made:
        headers = {"authorization": f"Bearer {(await made.json())['key']}"}
    gateway.engine.num_words = 3000
    url, question = f"{gateway.url}/v1/chat/completions", {**QUESTION, "stream": True}
    async with gateway.http.post(url, json=question, headers={**headers, "x-prefloop-compare": "always"}) as pair:
        read = b""
        while read.count(b"data: ") < 1000:
            read += await pair.content.readany()
        pair.close()
    await wait_until(lambda: gateway.context.deployment.counters.num_in_flight == 0)
    gateway.engine.num_words = None
    async with gateway.http.post(url, json=QUESTION, headers=headers) as after:
        left = int(after.headers["x-ratelimit-remaining-tokens"])
    assert 100_000 - left >= 1000 + len(json.dumps(question)) // 4 - 10
