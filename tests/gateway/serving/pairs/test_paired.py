"""Two answers through the public HTTP: whole and streamed, and what happens when one of them is missing."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import QUESTION, Running, run_gateway, wait_until

from feedback.choices import load_comparison
from feedback.events import Comparison
from gateway.engines.deployment import ServingView

PAIR = {"x-prefloop-compare": "always", "x-prefloop-user": "ann"}


def stored(gateway: Running, comparison_id: str) -> Comparison:
    with gateway.context.database.connect() as conn:
        return load_comparison(conn, comparison_id)


async def stream_pair(gateway: Running, **fields: Any) -> list[dict[str, Any]]:
    async with gateway.http.post(
        f"{gateway.url}/v1/chat/completions",
        json={**QUESTION, "stream": True, **fields},
        headers={**gateway.auth, **PAIR},
    ) as answer:
        assert answer.status == 200
        events = (await answer.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event[6:]) for event in events[:-2]]


async def start_duel(gateway: Running, tmp_path: Path) -> ServingView:
    """Every known user duels from now on."""
    view = gateway.context.deployment.view
    stable = view.stable or ""
    canary = stable.replace("c-000000", "c-000001")
    gateway.engine.adapters.add(canary)
    duel = ServingView(view.generation + 1000, stable, canary, 0.0, 1.0, b"salt", "r-1")
    await gateway.serve(duel)
    return duel


async def test_a_pair_has_two_choices_and_a_comparison(gateway: Running) -> None:
    answer = await gateway.ask(PAIR)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert set(answer["comparison"]) == {"id", "token", "expires_at"}
    assert answer["model"] == "default"
    assert "system_fingerprint" not in answer
    assert answer["id"] != "chatcmpl-of-the-engine"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    seeds = {request["seed"] for request in gateway.engine.requests}
    assert len(seeds) == 2
    row = stored(gateway, answer["comparison"]["id"])
    assert [row.first.text, row.second.text] == [choice["message"]["content"] for choice in answer["choices"]]
    assert (row.asked, row.propensity, row.app) == ("explore", 1.0, "tests")
    assert {row.first.seed, row.second.seed} == seeds


async def test_official_client_reads_a_pair(gateway: Running) -> None:
    answer = await gateway.client(X_Prefloop_Compare="always").chat.completions.create(**QUESTION)
    assert len(answer.choices) == 2
    assert answer.model_extra is not None and answer.model_extra["comparison"]["id"].startswith("cmp_")


async def test_official_client_reads_a_streamed_pair(gateway: Running) -> None:
    client = gateway.client(X_Prefloop_Compare="always")
    texts = ["", ""]
    comparison = None
    async for chunk in await client.chat.completions.create(**QUESTION, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        comparison = (chunk.model_extra or {}).get("comparison", comparison)
    row = stored(gateway, comparison["id"])
    assert texts == [row.first.text, row.second.text]
    assert (row.first.prompt_tokens, row.first.completion_tokens) == (5, 4)


async def test_the_comparison_rides_on_the_last_finish_and_usage_only_if_wanted(gateway: Running) -> None:
    chunks = await stream_pair(gateway)
    assert [i for i, chunk in enumerate(chunks) if "comparison" in chunk] == [len(chunks) - 1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any("usage" in chunk for chunk in chunks)
    finishes = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(finishes) == [0, 1]
    assert len({chunk["id"] for chunk in chunks}) == 1
    with_usage = await stream_pair(gateway, stream_options={"include_usage": True})
    assert with_usage[-1]["choices"] == []
    assert with_usage[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    assert "comparison" in with_usage[-2]


async def test_chunks_of_both_answers_are_interleaved(gateway: Running) -> None:
    indexes = [chunk["choices"][0]["index"] for chunk in await stream_pair(gateway)]
    assert Counter(indexes) == {0: 6, 1: 6}
    assert indexes != sorted(indexes)


async def test_nobody_gets_two_who_did_not_ask(gateway: Running) -> None:
    for headers in ({}, {"x-prefloop-compare": "never"}):
        answer = await gateway.ask(headers)
        assert len(answer["choices"]) == 1 and "comparison" not in answer


@pytest.mark.parametrize("fields", [{"n": 2}, {"temperature": 0}, {"temperature": 0.0}, {"seed": 7}])
async def test_own_sampling_is_never_paired(gateway: Running, fields: dict[str, Any]) -> None:
    answer = await gateway.ask(PAIR, **fields)
    assert "comparison" not in answer
    assert len(gateway.engine.requests) == 1


async def test_a_key_without_permission_gets_one_answer(gateway: Running) -> None:
    gateway.key = await gateway.make_key(pairs=False)
    assert len((await gateway.ask(PAIR))["choices"]) == 1
    assert gateway.context.deployment.counters.not_paired["key"] == 1


async def test_identical_answers_collapse_to_one(gateway: Running) -> None:
    gateway.engine.same_text = True
    answer = await gateway.ask(PAIR)
    assert [choice["index"] for choice in answer["choices"]] == [0]
    assert "comparison" not in answer
    assert not any("comparison" in chunk for chunk in await stream_pair(gateway))


@pytest.mark.parametrize("rank", [0, 1])
async def test_if_one_answer_fails_the_other_stands_alone(gateway: Running, rank: int) -> None:
    gateway.engine.fail_ranks = {rank, 2 + rank}
    answer = await gateway.ask(PAIR)
    assert [choice["index"] for choice in answer["choices"]] == [0]
    assert "comparison" not in answer
    chunks = await stream_pair(gateway)
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0}
    assert not any("comparison" in chunk for chunk in chunks)


async def test_if_both_fail_the_refusal_is_passed_on(gateway: Running) -> None:
    gateway.engine.fail_ranks = {0, 1, 2, 3}
    for is_stream in (False, True):
        async with gateway.http.post(
            f"{gateway.url}/v1/chat/completions",
            json={**QUESTION, "stream": is_stream},
            headers={**gateway.auth, **PAIR},
        ) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["message"] == "default cannot do that"


async def test_a_stream_survives_index_1_and_ends_in_an_error_without_index_0(gateway: Running) -> None:
    gateway.engine.break_after = 2
    outcomes: Counter[str] = Counter()
    while len(outcomes) < 2:  # which of the two is asked second, and breaks, is a coin
        gateway.engine.break_seed_rank = len(gateway.engine.requests) + 1
        chunks = await stream_pair(gateway)
        assert not any("comparison" in chunk for chunk in chunks)
        if "error" in chunks[-1]:
            assert chunks[-1]["error"]["code"] == "engine_lost"
            outcomes["index 0 broke"] += 1
        else:
            finished = {chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]}
            assert finished == {0}
            outcomes["index 1 broke"] += 1
        assert outcomes.total() < 40
    assert gateway.context.deployment.counters.failed_requests == outcomes["index 0 broke"]
    for name in gateway.engine.adapters:
        await wait_until(lambda name=name: gateway.context.deployment.in_flight(name) == 0)


async def test_a_duel_has_one_candidate_of_each_arm_and_shows_no_difference(gateway: Running, tmp_path: Path) -> None:
    view = await start_duel(gateway, tmp_path)
    canary_first = 0
    for user in range(24):
        answer = await gateway.ask({**PAIR, "x-prefloop-user": f"user-{user}"})
        row = stored(gateway, answer["comparison"]["id"])
        assert {row.first.checkpoint, row.second.checkpoint} == {view.stable, view.canary}
        assert (row.asked, row.rollout) == ("duel", "r-1")
        assert "c-00000" not in json.dumps(answer)
        canary_first += row.first.arm == "canary"
    assert 2 < canary_first < 22


async def test_without_a_user_there_is_no_duel(gateway: Running, tmp_path: Path) -> None:
    await start_duel(gateway, tmp_path)
    answer = await gateway.ask({"x-prefloop-compare": "always"})
    row = stored(gateway, answer["comparison"]["id"])
    assert (row.asked, row.user) == ("explore", "")
    assert row.first.checkpoint == row.second.checkpoint


async def test_a_row_that_is_late_leaves_the_comparison_out(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, comparison_commit_ms=1e-6) as gateway:
        answer = await gateway.ask(PAIR)
        assert len(answer["choices"]) == 2
        assert "comparison" not in answer
        assert gateway.context.deployment.counters.not_paired["late"] == 1


async def test_a_client_that_leaves_a_streamed_pair_frees_both_answers(gateway: Running) -> None:
    gateway.engine.delay_s = 30.0
    task = asyncio.create_task(stream_pair(gateway))
    await wait_until(lambda: len(gateway.engine.requests) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stable = gateway.context.deployment.view.stable or ""
    await wait_until(lambda: gateway.context.deployment.in_flight(stable) == 0)


@pytest.mark.parametrize(
    "fields",
    [{"temperature": "0.7"}, {"temperature": True}, {"max_tokens": True}, {"metadata": "x"}, {"metadata": ["a"]}],
)
async def test_what_engines_take_leniently_is_stored_as_they_read_it(gateway: Running, fields: dict[str, Any]) -> None:
    await stream_pair(gateway, **fields)
    answer = await gateway.ask(PAIR, **fields)
    row = stored(gateway, answer["comparison"]["id"])
    temperature = float(fields["temperature"]) if "temperature" in fields else None
    max_tokens = 1 if "max_tokens" in fields else None
    assert (row.first.temperature, row.first.max_tokens, row.tags) == (temperature, max_tokens, {})
    assert (await gateway.choose(answer["comparison"]))[0] == 200


async def test_answers_that_became_too_long_for_an_event_are_not_asked_about(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, max_event_bytes=600) as gateway:
        chunks = await stream_pair(gateway, max_tokens=10)  # from the request alone it is not to be seen
        assert not any("comparison" in chunk for chunk in chunks)
        assert gateway.context.deployment.counters.not_paired["size"] == 1


async def test_requests_at_once_do_not_pass_the_daily_cap_and_what_was_not_shown_does_not_count(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, ask_rate=1.0, random_share=0.0, max_asks_per_user_day=3) as gateway:
        headers = {"x-prefloop-compare": "auto", "x-prefloop-user": "ann"}
        gateway.engine.same_text = True
        assert "comparison" not in await gateway.ask(headers)
        gateway.engine.same_text = False
        answers = await asyncio.gather(*(gateway.ask(headers) for _ in range(12)))
        assert sum("comparison" in answer for answer in answers) == 3
