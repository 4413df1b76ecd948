"""How far the canary's answers are from stable's: who is measured, what engines are asked, and what comes of their failures."""

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import Running, run_gateway, start_engine, wait_until
from engine import FakeEngine
from pairs.test_observed import Kept, ask
from pairs.test_token_ids import PROMPT_IDS, speak_ids

from gateway.engines.deployment import ServingView
from gateway.sections.rollout import Kl

KL = Kl(share=1.0, places=2, max_per_s=1e9)
CANARY, STABLE = {7: 0.5, 2: 0.25}, {7: 0.25, 2: 0.25}  # by hand: .5 ln 2 + 0 + .25 ln (.25 / .5)
NATS = 0.25 * math.log(2)


class Telling(FakeEngine):
    """Says of both arms how likely the next tokens are; refuses what a test says."""

    canary = ""
    refuses: bytes | None = None
    status = 200
    says_nothing = False

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    async def _probe(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["model"] != self.canary and not self.canary:
            return await super()._probe(request)  # the checkpoints' own
        self.asked.append(body)
        if self.status != 200 or (self.refuses is not None and "priority" in body):
            return web.Response(status=self.status if self.refuses is None else 400, body=self.refuses or b"no")
        if self.says_nothing:
            return web.json_response({"choices": [{"index": 0, "text": "x", "logprobs": None}]})
        known = CANARY if body["model"] == self.canary else STABLE
        if "prompt_logprobs" in body:
            row = {str(token): {"logprob": math.log(p), "rank": 1} for token, p in known.items()}
            rows = [None, *[row] * (len(body["prompt"]) - 1)]
            return web.json_response({"choices": [{"index": 0, "text": "", "prompt_logprobs": rows}]})
        tops = [{f"token_id:{token}": math.log(p) for token, p in known.items()}]
        choices = [{"index": i, "text": "", "logprobs": {"top_logprobs": tops}} for i in range(len(body["prompt"]))]
        return web.json_response({"choices": choices})


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    engine = Telling()
    runner, port = await start_engine(engine)
    engines = [f"http://127.0.0.1:{port}"]
    async with run_gateway(tmp_path, engines=engines, connect_wait_s=0.2, max_asks_per_user_day=1000) as running:
        running.engine = engine
        speak_ids(running)
        yield running
    await runner.cleanup()


async def start_trial(gateway: Running, kl: Kl | None = KL) -> tuple[Kept, Telling]:
    engine = gateway.engine
    assert isinstance(engine, Telling)
    view = gateway.context.deployment.view
    stable = view.stable or ""
    engine.canary = stable.replace("c-000000", "c-000001")
    engine.adapters.add(engine.canary)
    gateway.context.controller.observations = kept = Kept()
    await gateway.serve(
        ServingView(view.generation + 1000, stable, engine.canary, 0.0, 1.0, b"salt", "r-1", "r-1", kl=kl)
    )
    return kept, engine


def count(gateway: Running, outcome: str) -> float:
    name = "prefloop_kl_measurements_total"
    return gateway.context.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_both_arms_are_asked_for_a_token_at_places_of_the_canarys_answer(
    gateway: Running, is_stream: bool
) -> None:
    kept, engine = await start_trial(gateway)
    assert await ask(gateway, "ann", stream=is_stream) == 200
    await wait_until(lambda: kept._divergences)
    (found,) = kept._divergences
    assert (found.rollout, found.user) == ("r-1", kept.rows[0][0]) and found.nats == pytest.approx(NATS, rel=1e-12)
    canary, stable = engine.asked
    assert (canary["model"], stable["model"]) == (engine.canary, gateway.context.deployment.view.stable)
    assert {**canary, "model": ""} == {**stable, "model": ""}
    seed = next(body["seed"] for body in engine.requests if body["model"] == engine.canary)
    whole = [*PROMPT_IDS, seed % 1000, 7, 2]
    assert len(canary["prompt"]) == 2 and all(prefix == whole[: len(prefix)] for prefix in canary["prompt"])
    assert all(len(PROMPT_IDS) <= len(prefix) < len(whole) for prefix in canary["prompt"])
    assert (canary["max_tokens"], canary["priority"], canary["logprobs"]) == (1, 100, 20)
    assert gateway.context.deployment.all_in_flight() == {} and count(gateway, "measured") == 1
    assert await ask(gateway, "ann") == 200  # one answer of a user
    assert await ask(gateway, "bob") == 200
    await wait_until(lambda: len(kept._divergences) == 2)
    assert count(gateway, "left_out") == 0


async def test_an_engine_that_survives_it_is_asked_for_the_whole_answer_at_once(gateway: Running) -> None:
    kept, engine = await start_trial(gateway, Kl(share=1.0, whole=True, max_per_s=1e9))
    assert await ask(gateway, "ann") == 200
    await wait_until(lambda: kept._divergences)
    assert kept._divergences[0].nats == pytest.approx(NATS, rel=1e-12)
    assert [(len(body["prompt"]), body["prompt_logprobs"]) for body in engine.asked] == [(6, 20), (6, 20)]


async def test_so_many_a_second_and_no_more(gateway: Running) -> None:
    kept, _ = await start_trial(gateway, Kl(share=1.0, max_per_s=0.01))
    for user in range(4):
        assert await ask(gateway, f"u{user}") == 200
    await wait_until(lambda: kept._divergences)
    assert (len(kept._divergences), count(gateway, "left_out")) == (1, 3)


async def test_a_share_of_users_is_measured_and_without_one_nobody(gateway: Running) -> None:
    kept, engine = await start_trial(gateway, KL.model_copy(update={"share": 0.5}))
    for user in range(24):
        assert await ask(gateway, f"u{user}") == 200
    await wait_until(lambda: gateway.context.deployment.all_in_flight() == {})
    assert 4 <= len(kept._divergences) + count(gateway, "left_out") <= 20
    view = gateway.context.deployment.view
    assert view.stable is not None and view.canary is not None
    kept, engine = await start_trial(gateway, None)
    num = len(engine.asked)
    assert await ask(gateway, "somebody else") == 200
    assert len(engine.asked) == num and kept._divergences == []


async def test_an_engine_without_priorities_is_asked_without_one(gateway: Running) -> None:
    kept, engine = await start_trial(gateway)
    engine.refuses = json.dumps({"error": {"message": "priority scheduling is not enabled"}}).encode()
    assert await ask(gateway, "ann") == 200
    await wait_until(lambda: kept._divergences)
    assert ["priority" in body for body in engine.asked] == [True, False, False]


@pytest.mark.parametrize("way", ["status", "no log-probabilities", "no ids"])
async def test_what_cannot_be_measured_is_counted_and_costs_no_answer(gateway: Running, way: str) -> None:
    kept, engine = await start_trial(gateway)
    engine.status = 500 if way == "status" else 200
    engine.says_nothing = way == "no log-probabilities"
    if way == "no ids":
        speak_ids(gateway, token_ids=None)
    assert await ask(gateway, "ann") == 200
    await wait_until(lambda: count(gateway, "failed") == (way != "no ids"))
    assert kept._divergences == [] and gateway.context.deployment.all_in_flight() == {}
