"""A kind of requests for which people prefer stable keeps a canary that most people prefer from being promoted."""

import json
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from operator_client import open_client
from world import World

from gateway.errors import RefusedAction
from gateway.rollout.pure import machine
from gateway.sections.rollout import RolloutSection
from gateway.tables.rollouts import decisions


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(World(tmp_path, auto_approve=False)) as made:
        yield made


async def test_a_slice_that_loses_blocks_a_promotion_and_is_named(world: World) -> None:
    await world.started()
    await world.duel(range(60), 3, {"language": "en"})
    await world.duel(range(60, 70), 0, {"language": "de"})
    await world.tick(1)
    row = await world.row()
    assert row.phase == machine.PROGRESSING
    shown = await world.controller.assessor.show(row)
    assert shown.evidence.e >= shown.evidence.threshold and all(
        g.status == "pass" for g in shown.guardrails if g.needed
    )
    assert shown.verdict_sentence.endswith(
        "; not promoted while language=de prefers stable (net win rate -100%, 10 users)."
    )
    english, german = shown.slices
    assert (english.name, english.value, english.users, english.status) == ("language", "en", 60, "pass")
    assert (german.value, german.users, german.net, german.status) == ("de", 10, -1.0, "fail")
    assert german.log_e_inferior >= german.log_threshold and german.upper < 0
    await world.tick(200)  # past max_s
    row = await world.row()
    assert (row.reason, row.note, row.analysis) == ("Slice", "language=de", "Inconclusive")
    async with open_client(world) as client:
        replayed = (await client.get(f"/operator/v1/rollouts/{row.id}/replay")).json()["decisions"]
    assert [(one["verdict"], one["is_same"]) for one in replayed] == [("Slice", True)]
    data = json.loads(await world.writer.arun(lambda conn: conn.execute(sa.select(decisions.c.data)).scalar_one()))
    assert [(one["value"], one["status"]) for one in data["slices"]] == [
        ("en", "pass"),
        ("de", "fail"),
    ]  # in the digest
    assert {one["name"] for one in data["tripwires"]} >= {"length", "flattery"}


async def test_a_slice_that_loses_while_an_approval_is_awaited_refuses_it(world: World) -> None:
    await world.started()
    await world.duel(range(80), 3, {"language": "en"})
    await world.tick(1)
    row = await world.row()
    assert row.phase == machine.WAITING
    await world.duel(range(80, 90), 0, {"language": "de"})
    await world.tick(1)
    row = await world.row()
    assert row.phase == machine.WAITING
    with pytest.raises(RefusedAction, match="no longer pass: language=de"):
        await world.controller.actions.approve(row.id, row.generation, row.decision_digest, "key:1")
    sentence = (await world.controller.assessor.show(row)).verdict_sentence
    assert sentence.startswith("Waiting for approval, which is refused while language=de prefers stable")


async def test_the_view_says_how_the_canary_fares_by_its_place(world: World) -> None:
    await world.started()
    await world.duel(range(20), 2)
    await world.tick(1)
    evidence = (await world.controller.assessor.show(await world.row())).evidence
    first, second = evidence.positions.first, evidence.positions.second
    assert first.votes + second.votes == evidence.votes == 60 and first.wins + second.wins == evidence.wins == 40
    assert first.votes > 0 and first.net_win_rate == (first.wins - first.losses) / first.votes
    assert evidence.positions.first_share == (first.wins + second.losses) / 60
    assert evidence.both_bad_share == 0


async def test_a_slice_that_may_lose_is_shown_and_blocks_nothing(tmp_path: Path) -> None:
    with closing(World(tmp_path, auto_approve=False, accept_slices=["language=de"])) as world:
        await world.started()
        await world.duel(range(60), 3, {"language": "en"})
        await world.duel(range(60, 70), 0, {"language": "de"})
        await world.tick(1)
        row = await world.row()
        assert row.phase == machine.WAITING
        shown = await world.controller.assessor.show(row)
        assert {one.value: one.status for one in shown.slices} == {"en": "pass", "de": "accepted"}
        assert "refused" not in shown.verdict_sentence
        await world.controller.actions.approve(row.id, row.generation, row.decision_digest, "key:1")
        assert (await world.row()).phase == machine.PROMOTING


def test_an_accepted_slice_is_written_as_a_name_and_a_value() -> None:
    with pytest.raises(ValueError, match="accept_slices"):
        RolloutSection(accept_slices=["german"])
