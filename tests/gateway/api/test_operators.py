"""The operators' routes over a real controller and database."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa
from operator_client import open_client
from world import World


async def test_an_operator_watches_and_approves(make_world: Callable[..., World]) -> None:
    world = make_world(auto_approve=False)
    async with open_client(world) as client:
        assert (await client.get("/operator/v1/status")).json()["stable"] is None
        old, new = await world.started()
        await world.duel(range(60), 3)
        await world.tick(1)
        status = (await client.get("/operator/v1/status")).json()
        assert (status["stable"]["id"], status["canary"]["id"]) == (old, new)
        shown = status["rollout"]
        assert shown["phase"] == "WaitingPromotion" and shown["approve_at"] is None
        assert shown["events"][0]["from"] == "" and shown["events"][0]["to"] == "Pending"
        approve = f"/operator/v1/rollouts/{shown['id']}:approve"
        stale = {"generation": shown["generation"] - 1, "decision_digest": shown["decision_digest"]}
        assert (await client.post(approve, json=stale)).status_code == 409
        seen = {"generation": shown["generation"], "decision_digest": shown["decision_digest"]}
        approved = await client.post(approve, json=seen)
        assert approved.status_code == 200 and approved.json()["phase"] == "Promoting"
        assert approved.json()["events"][-1]["actor"] == "key:k1"
        await world.tick()
        rolled_back = await client.post("/operator/v1/rollouts:rollback")
        assert rolled_back.json()["phase"] == "Aborting" and world.deployment.view.stable == old
        data = (await client.get("/operator/v1/rollouts")).json()["data"]
        assert [row["id"] for row in data] == [shown["id"]]


async def test_a_poll_of_the_status_makes_two_transactions_and_one_while_nothing_is_weighed(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    async with open_client(world) as client:
        await world.started()
        begun: list[object] = []
        sa.event.listen(world.engine, "begin", begun.append)
        for expected in (3, 2, 2):  # the first one reads the events too, which change with the generation alone
            begun.clear()
            assert (await client.get("/operator/v1/status")).json()["rollout"]["events"]
            assert len(begun) == expected
            world.time += 1.0
        world.controller.assessor._newest = replace(world.controller.assessor._newest, cpu_s=60.0)  # type: ignore[type-var]
        begun.clear()
        await client.get("/operator/v1/status")
        assert len(begun) == 1


async def test_pause_resume_abort(make_world: Callable[..., World]) -> None:
    world = make_world()
    async with open_client(world) as client:
        await world.started()
        path = f"/operator/v1/rollouts/{(await world.row()).id}"
        assert (await client.post(f"{path}:pause", json={"note": "Look"})).json()["note"] == "Look"
        assert (await client.get(path)).json()["phase"] == "Paused"
        assert (await client.post(f"{path}:resume")).json()["phase"] == "Progressing"
        assert (await client.post(f"{path}:resume")).status_code == 409
        assert (await client.post(f"{path}:abort")).json()["reason"] == "Operator"
        assert (await client.get("/operator/v1/rollouts/none")).status_code == 404


async def test_checkpoints_are_registered_once_and_bad_paths_refused(make_world: Callable[..., World]) -> None:
    world = make_world()
    async with open_client(world) as client:
        first = await world.publish(0)
        again = await client.post("/operator/v1/checkpoints", json={"path": str(world.root / "c0")})
        assert again.status_code == 200 and again.json()["id"] == first
        bad = await client.post("/operator/v1/checkpoints", json={"path": str(world.root / "nothing")})
        assert bad.status_code == 400
        assert (await client.post("/operator/v1/rollouts", json={"aa": True})).status_code == 409
        await world.tick()
        started = await client.post("/operator/v1/rollouts", json={"aa": True})
        assert started.status_code == 201 and started.json()["id"].startswith("a-")
        assert [row["status"] for row in (await client.get("/operator/v1/checkpoints")).json()["data"]] == [
            "stable", "waiting",
        ]  # fmt: skip


async def test_an_admin_promotes_past_the_gate_with_a_written_reason(make_world: Callable[..., World]) -> None:
    world = make_world()
    async with open_client(world) as client:
        old, new = await world.started()
        path = f"/operator/v1/rollouts/{(await world.row()).id}:promote"
        assert (await client.post(path, json={"note": "The gate cannot see it."})).status_code == 403
        client.headers["authorization"] = "Bearer admin"
        assert (await client.post(path, json={"note": ""})).status_code == 400
        promoted = (await client.post(path, json={"note": "The gate cannot see it."})).json()
        assert (promoted["phase"], promoted["reason"]) == ("Promoting", "Forced")
        last = promoted["events"][-1]
        assert (last["actor"], last["reason"], last["note"]) == ("key:k1", "Forced", "The gate cannot see it.")
        await world.tick()
        assert (world.deployment.view.stable, world.deployment.view.canary) == (new, old)
        assert (await client.post(path, json={"note": "Again."})).status_code == 409


async def test_a_rollout_lists_what_this_key_may_do_now(make_world: Callable[..., World]) -> None:
    world = make_world(baking_s=0.0, steps=[{"weight": 0.1, "hold_s": 60}, {"weight": 0.5}])
    async with open_client(world) as client:
        await world.started()
        first = (await client.get("/operator/v1/status")).json()["rollout"]
        assert first["actions"] == ["pause", "skip", "abort"] and first["reason_text"] == "it is on trial"
        assert first["steps"] == [{"weight": 0.1, "hold_s": 60.0}, {"weight": 0.5, "hold_s": None}]
        assert first["events"][-1]["reason_text"] == "every engine holds it and has proved its weights"
        client.headers["authorization"] = "Bearer admin"
        path = f"/operator/v1/rollouts/{first['id']}"
        assert (await client.get(path)).json()["actions"] == ["pause", "skip", "promote", "abort"]
        await client.post(f"{path}:promote", json={"note": "Test."})
        for _ in range(3):
            await world.tick()
        assert (await client.get(path)).json()["actions"] == ["rollback"]


async def test_what_serves_no_more_is_not_rolled_back_and_two_rollouts_are_never_on(
    make_world: Callable[..., World],
) -> None:
    world = make_world(baking_s=0.0)
    async with open_client(world) as client:
        client.headers["authorization"] = "Bearer admin"
        await world.started()
        paths = []
        for number in (2, 3):
            paths.append(f"/operator/v1/rollouts/{(await world.row()).id}")
            await client.post(f"{paths[-1]}:promote", json={"note": "Test."})
            for _ in range(3):
                await world.tick()
            await world.publish(number)
            await world.tick()
        older, newer = [(await client.get(path)).json() for path in paths]
        assert (older["phase"], older["actions"]) == ("Healthy", [])
        assert (newer["phase"], newer["actions"]) == ("Healthy", ["rollback"])
        refused = await client.post(f"{paths[0]}:rollback")
        assert refused.status_code == 409 and "does not serve any more" in refused.json()["error"]["message"]
        active = await world.row()
        refused = await client.post(f"{paths[1]}:rollback")
        assert refused.status_code == 409 and f"{active.id} is on" in refused.json()["error"]["message"]
        rolled_back = (await client.post("/operator/v1/rollouts:rollback")).json()
        assert (rolled_back["id"], rolled_back["phase"]) == (newer["id"], "RollingBack")


async def test_a_checkpoint_that_nothing_needs_is_given_up_for_good(make_world: Callable[..., World]) -> None:
    world = make_world(keep_checkpoints=1, baking_s=0.0)
    async with open_client(world) as client:
        client.headers["authorization"] = "Bearer admin"
        first, second = await world.started()
        for _ in range(2):
            if (await world.row()).phase != "Progressing":
                await world.publish(2)
                await world.tick()
            await client.post(f"/operator/v1/rollouts/{(await world.row()).id}:promote", json={"note": "Test."})
            for _ in range(4):
                await world.tick()
        rows = (await client.get("/operator/v1/checkpoints")).json()["data"]
        assert [(row["status"], row["may_delete"]) for row in rows] == [
            ("retired", True),
            ("retired", False),
            ("stable", False),
        ]  # fmt: skip  (a roll back goes to the second)
        assert (await client.delete(f"/operator/v1/checkpoints/{rows[2]['id']}")).status_code == 409
        assert (await client.delete("/operator/v1/checkpoints/none")).status_code == 404
        for _ in range(2):
            assert (await client.delete(f"/operator/v1/checkpoints/{first}")).json()["status"] == "deleted"
        again = await client.post("/operator/v1/rollouts", json={"checkpoint": first})
        assert again.status_code == 409 and "deleted" in again.json()["error"]["message"]
        assert (await client.post("/operator/v1/rollouts", json={"checkpoint": second})).status_code == 201
        assert (await client.delete(f"/operator/v1/checkpoints/{second}")).status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("GET", "rollouts/a%00b", None, "rollout"),
        ("POST", "rollouts/a%00b:resume", None, "rollout"),
        ("POST", "rollouts/r1:abort", {"note": "a\0b"}, "note"),
        ("POST", "rollouts/r1:approve", {"generation": 1, "decision_digest": "\0"}, "decision_digest"),
        ("POST", "rollouts", {"checkpoint": "\0"}, "checkpoint"),
        ("POST", "checkpoints", {"path": "/tmp/\0"}, "path"),
        ("DELETE", "checkpoints/%00", None, "checkpoint"),
        ("DELETE", "engines?url=http://%00", None, "url"),
        ("POST", "engines", {"url": "http://a", "checkpoint": "\0"}, "checkpoint"),
        ("GET", "rollouts?limit=many", None, "limit"),
        ("DELETE", "engines", None, "url"),
        ("POST", "rollouts/r1:approve", {"generation": 1}, "decision_digest"),
    ],
)
async def test_text_that_no_database_could_hold_and_fields_at_fault_are_named(
    make_world: Callable[..., World], method: str, path: str, body: object, param: str
) -> None:
    """PostgreSQL has no text with NUL in it: it would answer each of these with an error of its own."""
    async with open_client(make_world()) as client:
        answer = await client.request(method, f"/operator/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["status", "checkpoints", "rollouts"])
async def test_an_app_key_sees_nothing(make_world: Callable[..., World], path: str) -> None:
    async with open_client(make_world()) as client:
        answer = await client.get(f"/operator/v1/{path}", headers={"authorization": "Bearer app"})
        assert answer.status_code == 403
