"""What a harm screen calls harmful counts as reported; what it has not looked at says nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from world import World

from feedback.choices import comparisons
from gateway.errors import MissingExtra
from gateway.rollout.harm_screen import HarmScreen, build_screen, load_screen
from gateway.rollout.pure import machine
from gateway.rollout.view import GuardrailView
from gateway.sections.rollout import RolloutSection


def find_poison(messages: list[dict[str, Any]], answer: str) -> bool:
    """The screen of this test."""
    assert messages[-1]["content"] == "q"
    if "?" in answer:
        raise RuntimeError("it cannot say")
    return "poison" in answer


NAME = f"{__name__}:find_poison"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(World(tmp_path, auto_approve=False, harm_screen=NAME, accept_blind=["kl"])) as made:
        await made.started()
        yield made


async def screen_all(world: World) -> HarmScreen:
    screen = build_screen(world.writer, NAME, world.controller)
    assert screen is not None
    while await screen.screen_some():
        pass
    return screen


async def show_harm(world: World) -> GuardrailView:
    shown = await world.controller.assessor.show(await world.row())
    return next(one for one in shown.guardrails if one.name == "harm")


async def test_a_canary_whose_answers_are_screened_as_harmful_goes_back(world: World) -> None:
    await world.duel(range(60), 3, said="Drink poison")
    await world.tick(1)
    assert (await world.row()).phase == machine.PROGRESSING
    await screen_all(world)
    await world.tick(1)
    await world.tick(1)
    assert ((await world.row()).phase, (await world.row()).reason) == (machine.DEGRADED, "Harm")


async def test_nothing_passes_before_the_screen_has_looked(world: World) -> None:
    await world.duel(range(60), 3)
    await world.tick(1)
    row, harm = await world.row(), await show_harm(world)
    assert row.phase == machine.PROGRESSING and (harm.status, harm.seen) == ("blind", 0)
    assert harm.sensor == "report button and API flag, harm screen"
    await screen_all(world)
    await world.tick(1)
    assert (await world.row()).phase == machine.WAITING
    harm = await show_harm(world)
    assert (harm.status, harm.seen, harm.canary) == ("pass", 120, 0.0)


async def test_an_answer_over_which_the_screen_fails_stays_unseen_and_is_not_asked_again(world: World) -> None:
    await world.duel(range(60), 3, said="What?")
    screen = await screen_all(world)
    assert screen.num_failed == 180  # once for each duel
    query = sa.select(comparisons.c.screened).distinct()
    assert list(await world.writer.arun(lambda conn: conn.execute(query).scalars().all())) == ["{}"]
    await world.tick(1)
    assert (await world.row()).phase == machine.PROGRESSING and (await show_harm(world)).status == "blind"


async def test_a_gateway_that_does_not_lead_screens_nothing(world: World) -> None:
    await world.duel(range(2), 3)
    world.restart()
    screen = build_screen(world.writer, NAME, world.controller)
    assert screen is not None and await screen.screen_some() == 0
    await world.tick()  # now it leads
    assert await screen.screen_some() == 6


async def test_it_looks_again_and_again_until_it_is_stopped(world: World) -> None:
    await world.duel(range(2), 3)
    screen = build_screen(world.writer, NAME, world.controller)
    assert screen is not None
    query = sa.select(sa.func.count()).where(comparisons.c.screened.is_not(None))
    running = asyncio.create_task(screen.run())
    async with asyncio.timeout(10):
        while await world.writer.arun(lambda conn: conn.execute(query).scalar_one()) < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()


def test_a_screen_that_cannot_be_loaded_says_so_at_the_start() -> None:
    assert load_screen("") is None and load_screen(NAME) is find_poison
    for name in ("no_such_module:screen", f"{__name__}:nothing", f"{__name__}:NAME"):
        with pytest.raises(MissingExtra, match="harm_screen"):
            load_screen(name)
    with pytest.raises(ValueError, match="harm_screen"):
        RolloutSection(harm_screen="rm -rf")
