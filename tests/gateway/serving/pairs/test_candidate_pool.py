"""Comparisons whose two answers the scorer picks, through the public HTTP; and the scorer away, slow, busy or talking nonsense."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import QUESTION, Running, run_gateway, wait_until
from scorer import FakeScorer

from feedback.choices import load_comparison
from feedback.events import Comparison
from gateway.engines.deployment import ServingView

ALWAYS = {"x-prefloop-compare": "always", "x-prefloop-user": "ann"}
INFORMATIVE = {"random": 1e-9, "informative": 1 - 1e-9}
TELLING = {"random": 1e-9, "telling": 1 - 1e-9}


@contextlib.asynccontextmanager
async def run_scored(
    tmp_path: Path, scorer: FakeScorer | None, asking: dict[str, Any], **section: Any
) -> AsyncIterator[Running]:
    """A gateway with a scorer; None: nobody listens at its address."""
    runner = web.AppRunner((scorer or FakeScorer()).build(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    if scorer is None:
        await runner.cleanup()
    given = {"budget_ms": 20_000.0, **asking}
    try:
        async with run_gateway(tmp_path, scorer_url=url, asking=given, **section) as gateway:
            yield gateway
    finally:
        await runner.cleanup()


def stored(gateway: Running, answer: dict[str, Any]) -> Comparison:
    with gateway.context.database.connect() as conn:
        return load_comparison(conn, answer["comparison"]["id"])


async def read_status(gateway: Running) -> dict[str, Any]:
    async with gateway.http.get(f"{gateway.url}/operator/v1/status", headers=gateway.admin) as answer:
        return dict((await answer.json())["asking"])


async def read_metrics(gateway: Running) -> str:
    async with gateway.http.get(f"{gateway.url}/metrics") as answer:
        return await answer.text()


def list_seeds(row: Comparison) -> set[int | None]:
    return {row.first.seed, row.second.seed}


@pytest.mark.parametrize(
    ("asking", "share", "places"), [(INFORMATIVE, "informative", (1, 3)), (TELLING, "telling", (2, 0))]
)
async def test_the_two_that_the_scorer_picks_are_shown(
    tmp_path: Path, asking: dict[str, float], share: str, places: tuple[int, int]
) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, asking) as gateway:
        answer = await gateway.ask(ALWAYS)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        row = stored(gateway, answer)
        texts = [row.first.text, row.second.text]
        assert texts == [choice["message"]["content"] for choice in answer["choices"]]
        [asked] = scorer.requests
        assert set(texts) == {asked["candidates"][place]["text"] for place in places}
        assert len({each["seed"] for each in gateway.engine.requests}) == len(gateway.engine.requests) == 4
        assert (row.asked, row.share, row.propensity) == ("explore", share, pytest.approx(1.0))
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}  # all that was made
        status = await read_status(gateway)
        assert (status["problem"], status["num_by_share"], status["reward_version"]) == ("", {share: 1}, 7)
        assert f'prefloop_asks_total{{share="{share}"}} 1.0' in await read_metrics(gateway)
        assert 'prefloop_requests_total{arm="stable",code="200"} 4.0' in await read_metrics(gateway)
        assert (await gateway.choose(answer["comparison"]))[0] == 200


async def test_the_places_on_the_page_say_nothing_of_the_scorers_order(tmp_path: Path) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, TELLING) as gateway:
        best_first = 0
        for _ in range(24):
            row = stored(gateway, await gateway.ask(ALWAYS))
            best_first += row.first.text == scorer.requests[-1]["candidates"][2]["text"]
        assert 2 < best_first < 22  # a fair coin is outside once in 30,000


AWAY = b'{"error": {"code": "%s", "message": "no"}}'
FAILURES: list[tuple[str, FakeScorer | None]] = [
    ("away", None),
    ("busy", FakeScorer(answer=(503, AWAY % b"busy"))),
    ("not_ready", FakeScorer(answer=(503, AWAY % b"not_ready"))),
    ("failed", FakeScorer(answer=(500, b"<html>"))),
    ("refused", FakeScorer(answer=(422, AWAY % b"unusable"))),
    ("garbage", FakeScorer(answer=(200, b"{}"))),
    ("garbage", FakeScorer(answer=(200, b"\xff" * 100))),
    ("garbage", FakeScorer(telling=(1, 1))),
    ("garbage", FakeScorer(telling=(0, 4))),
    ("garbage", FakeScorer(telling=(-1, 0))),
]


@pytest.mark.parametrize(
    ("reason", "scorer"), FAILURES, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(FAILURES)]
)
async def test_without_the_scorers_help_the_first_two_are_shown_and_it_is_counted(
    tmp_path: Path, reason: str, scorer: FakeScorer | None
) -> None:
    async with run_scored(tmp_path, scorer, TELLING) as gateway:
        row = stored(gateway, await gateway.ask(ALWAYS))
        assert list_seeds(row) == {each["seed"] for each in gateway.engine.requests[:2]}
        assert (row.share, row.propensity) == ("random", pytest.approx(1.0))
        assert f'prefloop_scorer_failures_total{{reason="{reason}"}} 1.0' in await read_metrics(gateway)
        status = await read_status(gateway)
        assert status["num_failures"] == {reason: 1} and status["num_by_share"] == {"random": 1}
        assert status["problem"].startswith("asks are random because" if reason != "refused" else "")
        if reason != "refused":  # for a while no more than two are made
            num = len(gateway.engine.requests)
            row = stored(gateway, await gateway.ask(ALWAYS))
            assert len(gateway.engine.requests) == num + 2
            assert (row.share, row.propensity) == ("random", 1.0)


async def test_a_slow_scorer_is_not_waited_for_beyond_the_budget(tmp_path: Path) -> None:
    async with run_scored(tmp_path, FakeScorer(never=True), {**INFORMATIVE, "budget_ms": 200.0}) as gateway:
        row = stored(gateway, await gateway.ask(ALWAYS))
        assert row.share == "random"
        failures = (await read_status(gateway))["num_failures"]
        assert failures.keys() <= {"slow", "candidates"} and sum(failures.values()) == 1


async def test_slow_candidates_are_not_waited_for_beyond_the_budget_and_are_given_up(tmp_path: Path) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, {**INFORMATIVE, "budget_ms": 50.0}) as gateway:
        gateway.engine.never_ranks = {2, 3}
        row = stored(gateway, await gateway.ask(ALWAYS))
        assert list_seeds(row) == {each["seed"] for each in gateway.engine.requests[:2]}
        assert (row.share, scorer.requests) == ("random", [])
        assert (await read_status(gateway))["num_failures"] == {"candidates": 1}
        for name in gateway.engine.adapters:
            await wait_until(lambda name=name: gateway.context.deployment.in_flight(name) == 0)


@pytest.mark.parametrize("rank", [0, 3])
async def test_if_one_candidate_fails_two_others_are_shown_at_random(tmp_path: Path, rank: int) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, INFORMATIVE) as gateway:
        gateway.engine.fail_ranks = {rank}
        row = stored(gateway, await gateway.ask(ALWAYS))
        assert (row.share, scorer.requests) == ("random", [])
        good = [each["seed"] for number, each in enumerate(gateway.engine.requests) if number != rank]
        assert list_seeds(row) == set(good[:2])
        assert (await read_status(gateway))["num_failures"] == {"candidates": 1}


async def test_if_all_but_one_fail_it_stands_alone_and_if_all_fail_the_refusal_is_passed_on(tmp_path: Path) -> None:
    async with run_scored(tmp_path, FakeScorer(), INFORMATIVE) as gateway:
        gateway.engine.fail_ranks = {0, 1, 3, *range(4, 8)}
        answer = await gateway.ask(ALWAYS)
        assert [choice["index"] for choice in answer["choices"]] == [0] and "comparison" not in answer
        url = f"{gateway.url}/v1/chat/completions"
        async with gateway.http.post(url, json=QUESTION, headers={**gateway.auth, **ALWAYS}) as refused:
            assert refused.status == 400
            assert (await refused.json())["error"]["message"] == "default cannot do that"


async def test_identical_candidates_collapse_to_one(tmp_path: Path) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, INFORMATIVE) as gateway:
        gateway.engine.same_text = True
        answer = await gateway.ask(ALWAYS)
        assert len(answer["choices"]) == 1 and scorer.requests == []
        assert gateway.context.deployment.counters.not_paired["identical"] == 1


async def test_a_duel_is_never_picked(tmp_path: Path) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, INFORMATIVE) as gateway:
        view = gateway.context.deployment.view
        canary = (view.stable or "").replace("c-000000", "c-000001")
        gateway.engine.adapters.add(canary)
        await gateway.serve(ServingView(view.generation + 1000, view.stable, canary, 0.0, 1.0, b"salt", "r-1"))
        row = stored(gateway, await gateway.ask(ALWAYS))
        assert (row.asked, row.share, scorer.requests) == ("duel", "random", [])
        assert len(gateway.engine.requests) == 2


async def test_what_is_asked_to_judge_is_never_picked(tmp_path: Path) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, INFORMATIVE, random_share=1.0) as gateway:
        row = stored(gateway, await gateway.ask({**ALWAYS, "x-prefloop-compare": "auto"}))
        assert (row.asked, row.share, row.propensity, scorer.requests) == ("random", "random", 1.0, [])


async def test_without_a_scorer_all_are_random_and_the_status_says_why(tmp_path: Path) -> None:
    async with run_gateway(tmp_path) as gateway:
        row = stored(gateway, await gateway.ask(ALWAYS))
        assert (row.share, row.propensity, len(gateway.engine.requests)) == ("random", 1.0, 2)
        assert "no scorer is configured" in (await read_status(gateway))["problem"]


async def stream(gateway: Running) -> list[dict[str, Any]]:
    body = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    url = f"{gateway.url}/v1/chat/completions"
    async with gateway.http.post(url, json=body, headers={**gateway.auth, **ALWAYS}) as answer:
        assert answer.status == 200
        events = (await answer.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event[6:]) for event in events[:-2]]


async def test_streams_are_not_held_unless_the_settings_allow_it(tmp_path: Path) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, INFORMATIVE) as gateway:
        chunks = await stream(gateway)
        row = stored(gateway, next(chunk for chunk in chunks if "comparison" in chunk))
        assert (row.share, row.propensity, scorer.requests) == ("random", 1.0, [])


async def test_held_streams_are_picked_and_shown_as_if_they_came_now(tmp_path: Path) -> None:
    scorer = FakeScorer()
    async with run_scored(tmp_path, scorer, {**INFORMATIVE, "hold_streams": True}) as gateway:
        chunks = await stream(gateway)
        row = stored(gateway, next(chunk for chunk in chunks if "comparison" in chunk))
        [asked] = scorer.requests
        assert {row.first.text, row.second.text} == {asked["candidates"][place]["text"] for place in (1, 3)}
        texts = ["", ""]
        for chunk in chunks:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
        assert texts == [row.first.text, row.second.text]
        assert row.share == "informative"
        assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}
        assert 'prefloop_requests_total{arm="stable",code="200"} 4.0' in await read_metrics(gateway)


async def test_held_streams_that_break_leave_the_others(tmp_path: Path) -> None:
    async with run_scored(tmp_path, FakeScorer(), {**INFORMATIVE, "hold_streams": True}) as gateway:
        gateway.engine.break_after, gateway.engine.break_seed_rank = 2, 1
        row = stored(gateway, next(chunk for chunk in await stream(gateway) if "comparison" in chunk))
        seeds = [each["seed"] for each in gateway.engine.requests]
        assert (list_seeds(row), row.share) == ({seeds[0], seeds[2]}, "random")
