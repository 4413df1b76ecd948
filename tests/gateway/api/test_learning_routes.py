"""What operators see of learning and of people's feedback: what the trainer says, and what becomes of it when it does not."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from operator_client import open_client
from world import World

from feedback.choices import store_comparison
from feedback.database import write_transaction
from feedback.events import Comparison
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_comparison
from trainer.run.status.board import RewardView as TrainerReward
from trainer.run.status.board import RoundView as TrainerRound
from trainer.run.status.board import StatusView, StyleView

STATUS = {
    "decisive": 31,
    "round": {"state": "idle", "number": 2, "reason": "11 of 20"},
    "a field of a newer trainer": 1,
}
WINS = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}
ROUND = {
    "number": 2,
    "kind": "dpo",
    "outcome": "published",
    "checkpoint": "c-000001",
    "reason": "passed",
    "metrics": {"kl": 0.5},
    "rung": {"checkpoint": "c-000001", "first": "c-0", "win_rate": WINS, "judge": "auditor"},
}
OPEN_ROUND = {"number": 3, "outcome": None, "finished_at": None, "curve": [{"share": 0.1, "loss": None}]}


def say(body: Any, status: int = 200) -> tuple[int, bytes]:
    return status, json.dumps(body).encode()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    made = make_world()
    made.settings.gateway.trainer_url = "http://127.0.0.1:8802"
    return made


async def test_learning_is_shown_as_the_trainer_says_it(world: World) -> None:
    pages = {
        "/status": say(STATUS),
        "/rounds": say({"data": [ROUND]}),
        "/rounds/2": say({**ROUND, "samples": [{"prompt": "?"}]}),
    }
    async with open_client(world, {**pages, "/rounds/3": say(OPEN_ROUND), "/rounds/9": say({}, 404)}) as client:
        learning = (await client.get("/operator/v1/learning")).json()
        assert learning["problem"] == "" and learning["trainer"]["decisive"] == 31
        assert learning["trainer"]["round"]["reason"] == "11 of 20"
        [listed] = (await client.get("/operator/v1/rounds")).json()["data"]
        assert (listed["checkpoint"], listed["rung"]["win_rate"]["value"]) == ("c-000001", 0.6)
        shown = (await client.get("/operator/v1/rounds/2")).json()
        assert shown["samples"] == [{"prompt": "?"}] and shown["has_report"] is False
        assert (await client.get("/operator/v1/rounds/3")).json()["curve"] == [{"share": 0.1, "loss": None}]
        for missing in ("9", "x", "²", "99999999999"):
            assert (await client.get(f"/operator/v1/rounds/{missing}")).status_code == 404, missing


async def test_every_field_is_read_under_the_name_that_the_trainer_gives_it(world: World) -> None:
    style = (StyleView("log_words", -0.5, 0.1),)
    reward = TrainerReward(
        version=4, version_in_use=3, refused="worse", prequential_accuracy=0.7, num_foreseen=9, style=style
    )
    doing = TrainerRound("training", 5, 0.5, "60 new choices", 30.0)
    written = StatusView(
        preferences=3, decisive=2, uses={"trained": 1}, new_since_round=1, round_every=60, lag=7, consumer_error="a",
        registry_error="b", dead_letters=4, quarantined=5, checkpoint="c-1", reward=reward, round=doing, drift=["longer"],
    )  # fmt: skip
    pages = {"/status": say(asdict(written))}
    async with open_client(world, pages) as client:
        shown = (await client.get("/operator/v1/learning")).json()["trainer"]
    told = json.loads(json.dumps(asdict(written)))
    for name, value in shown.items():
        expected = {key: told[name][key] for key in value} if isinstance(value, dict) and name != "uses" else told[name]
        assert value == expected, name


@pytest.mark.parametrize(
    ("pages", "problem"),
    [
        ({}, "The trainer does not answer."),
        ({"/status": say({}, 500), "/rounds": say({}, 500)}, "The trainer answered 500."),
        ({"/status": (200, b"\xff"), "/rounds": (200, b"\xff")}, "The trainer says something that cannot be read."),
    ],
)
async def test_a_trainer_that_says_nothing_of_use_is_said_so(world: World, pages: Any, problem: str) -> None:
    async with open_client(world, pages) as client:
        assert (await client.get("/operator/v1/learning")).json() == {"problem": problem, "trainer": None}
        refused = await client.get("/operator/v1/rounds")
        assert (refused.status_code, refused.json()["error"]["message"]) == (503, problem)


async def test_learning_and_feedback_are_for_operators(world: World) -> None:
    async with open_client(world) as client:
        for path in ("learning", "rounds", "rounds/1", "feedback", "feedback/comparisons", "checkpoints/c-0"):
            assert (
                await client.get(f"/operator/v1/{path}", headers={"authorization": "Bearer app"})
            ).status_code == 403


async def test_the_newest_comparisons_come_with_what_was_said_of_them(world: World) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:x"}}, {"type": "text", "text": "What is this?"}]
    asked: list[Comparison] = [
        make_comparison("cmp-1", user="u" * 40),
        make_comparison("cmp-2", created_at=1001.0, messages=[{"role": "user", "content": image}]),
        make_comparison("cmp-3", created_at=1002.0, policy="another"),
    ]
    with write_transaction(world.engine) as conn:
        for comparison in asked:
            store_comparison(conn, comparison)
        record_choice(conn, "cmp-1", "second", None, True, "api", 1003.5)
    async with open_client(world) as client:
        newest = (await client.get("/operator/v1/feedback/comparisons")).json()["data"]
        assert [each["id"] for each in newest] == ["cmp-2", "cmp-1"]
        assert (newest[0]["prompt"], newest[0]["preferred"], newest[0]["seconds_to_decide"]) == (
            "What is this?",
            None,
            None,
        )
        first = newest[1]
        assert (first["user"], first["preferred"], first["harmful"]) == ("u" * 12, "second", True)
        assert first["seconds_to_decide"] == 3.5
        assert len((await client.get("/operator/v1/feedback/comparisons?limit=1")).json()["data"]) == 1
        seen = (await client.get("/operator/v1/feedback")).json()
        assert (seen["recent"]["choices"], seen["recent"]["harmful"], seen["agreement"]["num"]) == (1, 1, 0)
        assert len(seen["days"]) == 14


async def test_a_checkpoint_is_shown_with_its_manifest(world: World) -> None:
    async with open_client(world) as client:
        old, _ = await world.started()
        shown = (await client.get(f"/operator/v1/checkpoints/{old}")).json()
        assert (shown["id"], shown["kind"], shown["rank"], shown["base_digest"], shown["num_files"]) == (
            old,
            "lora",
            8,
            "b",
            1,
        )
        assert shown["may_delete"] is False and shown["path"].endswith("c0")
        assert (await client.get("/operator/v1/checkpoints/c-none")).status_code == 404


async def test_a_round_is_asked_for_in_the_trainers_words(world: World) -> None:
    async with open_client(world, {"/rounds": say({"state": "idle", "reason": "a round is asked for"}, 202)}) as client:
        asked = await client.post("/operator/v1/rounds", json={"from_base": True})
        assert (asked.status_code, asked.json()) == (202, {"state": "idle", "reason": "a round is asked for"})
        refused = await client.post("/operator/v1/rounds", headers={"authorization": "Bearer app"})
        assert refused.status_code == 403
    busy = {"error": {"message": "round 3 is under way: 60 new choices"}}
    for said, status, message in (
        (say(busy, 409), 409, "Round 3 is under way: 60 new choices."),
        (say({}, 404), 409, "The trainer answered 404."),
        (say({}, 500), 503, "The trainer answered 500."),
        ((202, b"fine"), 202, None),
    ):
        async with open_client(world, {"/rounds": said}) as client:
            answer = await client.post("/operator/v1/rounds", json={})
            found = answer.json().get("error", {}).get("message")
            assert (answer.status_code, found) == (status, message)
    async with open_client(world) as client:
        answer = await client.post("/operator/v1/rounds")
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "The trainer does not answer.")
