"""What one person sees and does in the playground of their own machine, and who may not."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import Running, run_gateway, wait_until

QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}
STATUS = {
    "decisive": 31,
    "new_since_round": 11,
    "round_every": 20,
    "reward": {
        "version": 8,
        "prequential_accuracy": 0.75,
        "num_foreseen": 24,
        "style": [{"name": "log_words", "weight": -0.8, "sd": 0.2}],
    },
    "round": {"state": "training", "number": 2, "progress": 0.5, "reason": "x" * 400, "seconds_left": 30.0},
    "rounds": [{"number": 1, "checkpoint": "c-000001-abc", "reason": "passed", "samples": ["a text of a person"]}],
    "satisfaction": [{"slice": "app=secret"}],
}


class FakeTrainer:
    """Says `status` at /status, as JSON; bytes as they are."""

    def __init__(self) -> None:
        self.status: Any = STATUS

    async def answer(self, _: web.Request) -> web.Response:
        body = self.status if isinstance(self.status, bytes) else json.dumps(self.status).encode()
        return web.Response(body=body, content_type="application/json")


@pytest.fixture
async def trainer() -> AsyncIterator[tuple[FakeTrainer, str]]:
    made, app = FakeTrainer(), web.Application()
    app.router.add_get("/status", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield made, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def personal(tmp_path: Path, trainer: tuple[FakeTrainer, str]) -> AsyncIterator[Running]:
    async with run_gateway(tmp_path, preset="personal", trainer_url=trainer[1]) as running:
        yield running


async def look(gateway: Running, **headers: str) -> dict[str, Any]:
    async with gateway.http.get(gateway.url + "/playground/learning", headers=headers) as answer:
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        found: dict[str, Any] = await answer.json()
        return found


async def act(gateway: Running, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    async with gateway.http.post(gateway.url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def ask_and_choose(gateway: Running, preferred: str = "first") -> None:
    async with gateway.http.post(
        gateway.url + "/playground/chat", json=QUESTION, headers={"x-prefloop-compare": "auto"}
    ) as answer:
        events = (await answer.text()).split("\n\n")
    comparison = json.loads(events[-3][6:])["comparison"]
    assert (await gateway.choose(comparison, preferred=preferred))[0] == 200


async def test_what_was_learnt_is_shown_without_anybodys_text(personal: Running) -> None:
    seen = await look(personal)
    assert seen["operates"] and not seen["problem"] and seen["trial"] is None
    assert seen["stable"] == seen["first"] == personal.context.deployment.view.stable
    assert seen["trainer"]["reward"] == STATUS["reward"]
    assert seen["trainer"]["round"] == {**STATUS["round"], "reason": "x" * 300}
    assert seen["trainer"]["rounds"] == [{"number": 1, "checkpoint": "c-000001-abc", "reason": "passed"}]
    assert "text" not in json.dumps(seen) and "secret" not in json.dumps(seen)


async def test_a_trainer_that_is_away_or_talks_nonsense_is_said(
    personal: Running, trainer: tuple[FakeTrainer, str], tmp_path: Path
) -> None:
    for nonsense in ({"decisive": "many"}, b'{"decisive": "\xff"}', b"[" * 100_000):
        trainer[0].status = nonsense
        seen = await look(personal)
        assert (seen["trainer"], seen["problem"]) == (None, "The trainer says something that cannot be read.")
    async with run_gateway(tmp_path / "alone", preset="personal", trainer_url="http://127.0.0.1:9") as alone:
        assert (await look(alone))["problem"] == "The trainer does not answer."
    async with run_gateway(tmp_path / "unset", preset="personal") as unset:
        assert (await look(unset))["problem"] == "It is not known where the trainer is: set gateway.trainer_url."


async def test_by_default_the_playground_shows_and_does_nothing_of_it(gateway: Running) -> None:
    seen = await look(gateway)
    assert (seen["operates"], seen["trainer"], seen["stable"]) == (False, None, None)
    for path, body in (
        ("/playground/trial:approve", {"rollout": "r-000001", "generation": 1, "decision_digest": ""}),
        ("/playground/trial:abort", {"rollout": "r-000001"}),
        ("/playground/beside", {**QUESTION, "checkpoint": "first"}),
    ):
        assert (await act(gateway, path, body))[0] == 403
    assert gateway.engine.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "203.0.113.9"},
        {"sec-fetch-site": "cross-site"},
        {"host": "attacker.example"},
        {"host": "attacker.example:8800"},
    ],
)
async def test_strangers_and_other_names_of_this_machine_are_refused(
    personal: Running, headers: dict[str, str]
) -> None:
    async with personal.http.get(personal.url + "/playground/learning", headers=headers) as answer:
        assert answer.status == 403
    for path, body in (
        ("/playground/trial:abort", {"rollout": "r-000001"}),
        ("/playground/beside", {**QUESTION, "checkpoint": "first"}),
    ):
        assert (await act(personal, path, body, **headers))[0] == 403
    assert personal.engine.requests == []


async def test_actions_take_json_alone(personal: Running) -> None:
    for path in ("/playground/trial:abort", "/playground/beside"):
        async with personal.http.post(
            personal.url + path, data=b"{}", headers={"content-type": "text/plain"}
        ) as answer:
            assert answer.status == 415
    assert (await act(personal, "/playground/trial:abort", {"rollout": "r-000009"}))[0] == 404
    assert (await act(personal, "/playground/beside", {**QUESTION, "checkpoint": "c-000001"}))[0] == 400


async def test_the_persons_comparisons_are_evidence_and_their_approval_promotes(
    personal: Running, tmp_path: Path
) -> None:
    first = personal.context.deployment.view.stable
    second = await personal.publish(tmp_path / "checkpoints", 1)
    await wait_until(lambda: personal.context.deployment.view.canary == second)
    for _ in range(5):
        await ask_and_choose(personal)
    trial: dict[str, Any] = {}
    for _ in range(200):
        trial = (await look(personal))["trial"]
        if trial["may_decide"]:
            break
    assert (trial["unit"], trial["users"], trial["wins"] + trial["losses"]) == ("comparison", 5, 5)
    assert trial["note"].startswith("Too little evidence yet: ")
    seen = {"rollout": trial["id"], "generation": trial["generation"], "decision_digest": "another"}
    assert (await act(personal, "/playground/trial:approve", seen))[0] == 409
    seen["decision_digest"] = trial["decision_digest"]
    assert (await act(personal, "/playground/trial:approve", seen))[0] == 200
    await wait_until(lambda: personal.context.deployment.view.stable == second)
    assert (await look(personal))["first"] == first


async def test_the_first_checkpoint_answers_beside_the_one_that_serves(personal: Running) -> None:
    personal.engine.adapters.clear()  # as if it had been let go
    seen = await look(personal)
    async with personal.http.post(
        personal.url + "/playground/beside", json={**QUESTION, "checkpoint": "first"}
    ) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert "comparison" not in await answer.text()
    request = personal.engine.requests[-1]
    assert (request["model"], request["temperature"], request["max_tokens"]) == (seen["first"], 0.8, 200)


async def test_an_end_of_the_trial_needs_no_evidence(personal: Running, tmp_path: Path) -> None:
    second = await personal.publish(tmp_path / "checkpoints", 1)
    await wait_until(lambda: personal.context.deployment.view.canary == second)
    trial = (await look(personal))["trial"]
    assert (await act(personal, "/playground/trial:abort", {"rollout": trial["id"]}))[0] == 200
    assert personal.context.deployment.view.canary is None
