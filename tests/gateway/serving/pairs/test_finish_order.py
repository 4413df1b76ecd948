"""Which answer was complete first: recorded, and neither a place on the page nor an arm has it for its own."""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from aiohttp import web
from conftest import QUESTION, Running, run_gateway, start_engine
from engine import FakeEngine

from feedback import choices
from feedback.events import Comparison
from gateway.engines.deployment import ServingView
from gateway.serving.pairs.asking import is_last_asked_first, is_swapped
from gateway.serving.pairs.candidates import find_first_to_finish

STABLE_IS_SLOW, CANARY_IS_SLOW = "stable", "canary"
UNLIKELY = 1e-6


def two_sided_tail(hits: int, num: int) -> float:
    """The exact chance that a fair coin is at least so far from even."""
    far = max(hits, num - hits)
    return min(1.0, 2 * sum(math.comb(num, k) for k in range(far, num + 1)) / 2**num)


def test_the_tail_is_that_of_the_binomial() -> None:
    assert two_sided_tail(9, 10) == pytest.approx(22 / 1024)
    assert two_sided_tail(5, 10) == 1.0


class Sprinter(FakeEngine):
    """One of two checkpoints is slow; answers tell no more than which of the two was quick."""

    slow: str = ""

    async def _answer(self, request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        is_slow = body["model"] == self.slow
        await asyncio.sleep(0.06 if is_slow else 0.0)
        text = "Late but well considered." if is_slow else "Quick and to the point."
        if not self.slow:
            text = f"Said with seed {body['seed']}."
        if body.get("stream"):
            return await self._stream(request, body, text, rank)
        answer = {
            "id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
        }  # fmt: skip
        return web.json_response(answer)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    engine = Sprinter()
    runner, port = await start_engine(engine)
    async with run_gateway(tmp_path, engines=[f"http://127.0.0.1:{port}"]) as running:
        running.engine = engine
        yield running
    await runner.cleanup()


async def start_duel(gateway: Running, slow: str) -> None:
    """Every known user duels from now on, and one arm takes its time."""
    view = gateway.context.deployment.view
    stable = view.stable or ""
    canary = stable.replace("c-000000", "c-000001")
    gateway.engine.adapters.add(canary)
    assert isinstance(gateway.engine, Sprinter)
    gateway.engine.slow = {"stable": stable, "canary": canary}.get(slow, "")
    await gateway.serve(ServingView(view.generation + 1000, stable, canary, 0.0, 1.0, b"salt", "r-1"))


async def ask_pairs(gateway: Running, num: int, *, is_stream: bool) -> list[str]:
    """So many pairs, 20 at a time, each of another user; the bodies of the answers."""
    turns = asyncio.Semaphore(20)

    async def ask(user: int) -> str:
        headers = {**gateway.auth, "x-prefloop-compare": "always", "x-prefloop-user": f"u{user}"}
        body = {**QUESTION, "stream": is_stream}
        url = f"{gateway.url}/v1/chat/completions"
        async with turns, gateway.http.post(url, json=body, headers=headers) as answer:
            assert answer.status == 200
            return await answer.text()

    return await asyncio.gather(*(ask(user) for user in range(num)))


def read_comparisons(gateway: Running) -> list[Comparison]:
    with gateway.context.database.connect() as conn:
        bodies = conn.execute(sa.select(choices.comparisons.c.body)).scalars().all()
    return [msgspec.json.decode(body, type=Comparison) for body in bodies]


def test_who_was_first_follows_from_the_seconds() -> None:
    assert find_first_to_finish(1.0, 2.0) == "first"
    assert find_first_to_finish(2.0, 1.0) == "second"
    assert [find_first_to_finish(a, b) for a, b in ((1.0, 1.0), (None, 1.0), (1.0, None))] == [None] * 3


def test_place_order_of_asking_and_arm_are_independent_over_many_pairs() -> None:
    rng, key, num = Random(5), b"a key", 6000
    counts: Counter[str] = Counter()
    for _ in range(num):
        comparison_id = f"cmp_{rng.getrandbits(128):032x}"
        canary_first = is_swapped(comparison_id, key)  # the sides are (stable, canary)
        first_asked_first = not is_last_asked_first(comparison_id, key)
        canary_is_quick = rng.random() < 0.9  # whatever makes an arm quick knows nothing of the place
        finished_first = canary_first == canary_is_quick
        counts["canary is shown first"] += canary_first
        counts["shown first, asked first"] += first_asked_first
        counts["shown first, complete first"] += finished_first
        counts["canary asked first"] += canary_first == first_asked_first
    assert all(two_sided_tail(hits, num) > 0.001 for hits in counts.values()), counts


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_quick_arm_is_recorded_as_first_and_stands_in_either_place(gateway: Running, is_stream: bool) -> None:
    await start_duel(gateway, CANARY_IS_SLOW)
    await ask_pairs(gateway, 120, is_stream=is_stream)
    shown = read_comparisons(gateway)
    assert len(shown) == 120
    num_as_expected = 0
    for comparison in shown:
        quick, slow = comparison.first, comparison.second
        if quick.arm == "canary":
            quick, slow = slow, quick
        assert quick.seconds_to_finish is not None and slow.seconds_to_finish is not None
        assert slow.seconds_to_finish >= 0.06
        is_as_expected = quick.seconds_to_finish < slow.seconds_to_finish
        earlier = quick if is_as_expected else slow
        assert comparison.finished_first == ("first" if comparison.first is earlier else "second")
        num_as_expected += is_as_expected
    assert num_as_expected >= 110  # on a busy machine the quick one may be late
    assert two_sided_tail(sum(c.finished_first == "first" for c in shown), 120) > UNLIKELY
    with gateway.context.database.connect() as conn:
        column = sa.select(choices.comparisons.c.id, choices.comparisons.c.finished_first)
        assert {row.id: row.finished_first for row in conn.execute(column)} == {c.id: c.finished_first for c in shown}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_where_both_arms_are_as_quick_no_place_and_no_arm_is_complete_first(
    gateway: Running, is_stream: bool
) -> None:
    await start_duel(gateway, "")
    await ask_pairs(gateway, 160, is_stream=is_stream)
    shown = [c for c in read_comparisons(gateway) if c.finished_first is not None]
    assert len(shown) > 150
    first_places = sum(c.finished_first == "first" for c in shown)
    canaries = sum((c.first if c.finished_first == "first" else c.second).arm == "canary" for c in shown)
    assert two_sided_tail(first_places, len(shown)) > UNLIKELY
    assert two_sided_tail(canaries, len(shown)) > UNLIKELY


async def test_a_stream_is_the_same_to_the_byte_whichever_arm_finishes_first(gateway: Running) -> None:
    seen: dict[str, Counter[tuple[int, tuple[str, ...]]]] = {}
    for slow in (CANARY_IS_SLOW, STABLE_IS_SLOW):
        seen[slow] = Counter()
        gateway.context.deployment.view = ServingView(0, gateway.context.deployment.view.stable)
        await start_duel(gateway, slow)
        for transcript in await ask_pairs(gateway, 60, is_stream=True):
            *lines, end, rest = hide_what_is_random(transcript).split("\n\n")
            assert (end, rest) == ("data: [DONE]", "")
            chosen = [json.loads(line[6:])["choices"][0] for line in lines]
            first_done = next(choice["index"] for choice in chosen if choice["finish_reason"])
            of_index = [tuple(line for line, c in zip(lines, chosen, strict=True) if c["index"] == i) for i in (0, 1)]
            seen[slow][first_done, of_index[0] + of_index[1]] += 1  # how they were woven is a matter of milliseconds
    common = [{kind for kind, num in kinds.items() if num > 5} for kinds in seen.values()]
    assert common[0] == common[1]
    assert sorted(first_done for first_done, _ in common[0]) == [0, 1]


def hide_what_is_random(transcript: str) -> str:
    """Ids, tokens and times: they are drawn, or signed, for each pair."""
    transcript = re.sub(r"(chatcmpl-|cmp_)[0-9a-f]{32}", r"\1", transcript)
    transcript = re.sub(r'"token":"[^"]+"', '"token":""', transcript)
    return re.sub(r'"(created|expires_at)":\d+', r'"\1":0', transcript)
