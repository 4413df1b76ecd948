"""One run: the product as `prefloop up --preset personal` starts it, one person's choices, and an examination of what came of them.

The person's taste judges fresh answers of the last checkpoint beside those of checkpoint 0, on prompts that they never asked.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from rich.console import Console

from bench.personal.person import PersonGaveUp, draw_person, look, teach, wait_for_rounds
from feedback.secret_files import read_admin_key
from prefloop import startup
from prefloop.demo.examination import FinalResult, collect_answers, conclude
from prefloop.demo.tastes import Tastes, find_tastes, judge_truly, load_tastes
from prefloop.services import Layout, log_path
from prefloop.supervisor import Supervisor

REQUEST_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Setup:
    """What one run is of. num_questions: held-out prompts of the examination."""

    taste: str
    seed: int
    num_choices: int = 40
    num_questions: int = 48
    timeout_s: float = 7200.0


async def run_one(setup: Setup, model: Path, folder: Path, port: int, console: Console) -> dict[str, Any]:
    """Start everything anew in a folder, teach, examine, stop. Raises StartFailed, PersonGaveUp, TimeoutError, and what clients do."""
    shutil.rmtree(folder, ignore_errors=True)
    layout = Layout(
        folder,
        port=port,
        model=str(model),
        preset="personal",
        max_model_len=startup.choose_max_model_len(str(model), 0),
    )
    startup.require_free_ports(layout)
    trainer = {"PREFLOOP_TRAINER__SEED": str(setup.seed)}
    startup.check_settings(layout, None, trainer)
    console.print(f"{setup.taste}, seed {setup.seed}; logs: {log_path(layout, 'engine').parent}", highlight=False)
    supervisor, stop = Supervisor(), asyncio.Event()
    startup.start_services(supervisor, layout, None, trainer)
    try:
        await startup.wait_until_ready(layout, supervisor, console, stop)
        async with asyncio.timeout(setup.timeout_s):
            return await teach_and_examine(setup, layout, lambda line: console.print(line, highlight=False))
    finally:
        await supervisor.stop()


async def teach_and_examine(setup: Setup, layout: Layout, say: Callable[[str], None]) -> dict[str, Any]:
    """Over services that are up: the figures of one run. Raises PersonGaveUp."""
    tastes = load_tastes(find_tastes(setup.taste))
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=layout.gateway_url, timeout=REQUEST_TIMEOUT_S) as client:
        learning = await look(client)
        if learning is None:
            raise PersonGaveUp("the gateway does not show what is learnt: is the preset personal?")
        first, sets = learning["first"], {}
        questions = pick_questions(tastes, setup)
        async with open_operator(layout) as operator:
            for draw in ("reference", "before"):
                say(f"asking checkpoint 0 {len(questions)} held-out prompts ({draw})")
                sets[draw] = await collect_answers(
                    operator, first, questions, f"{draw}-{setup.seed}", tastes.world.manners
                )
            taught = await teach(client, tastes, draw_person(tastes, setup.seed), setup.num_choices, say)
            taught_s = time.monotonic() - began
            learning = await wait_for_rounds(client, setup.num_choices, say)
            if learning is None:
                raise PersonGaveUp("the gateway does not show what was learnt")
            last = find_last(learning)
            figures = {"choices": asdict(taught), "minutes": taught_s / 60, "learning": learning, "checkpoint": last}
            if last is None:
                return {**asdict(setup), **figures, "win_rate": 0.5, "win_rate_before": None}
            say(f"asking {last}")
            sets["after"] = await collect_answers(
                operator, last, questions, f"after-{setup.seed}", tastes.world.manners
            )
        result = conclude(tastes.world, first, last, questions, sets, make_judge(tastes), setup.seed)
    return {**asdict(setup), **figures, **show_result(result)}


def pick_questions(tastes: Tastes, setup: Setup) -> list[str]:
    """Prompts that the person never asks."""
    held_out = tastes.world.held_out_questions()
    return random.Random(f"examined-{setup.seed}").sample(held_out, min(setup.num_questions, len(held_out)))


def make_judge(tastes: Tastes) -> Callable[[str, str, bool], Any]:
    """What the person holds of an answer."""
    return lambda question, answer, is_cut: judge_truly(tastes, question, answer, is_cut)


def open_operator(layout: Layout) -> AsyncOpenAI:
    """A client that may ask checkpoints by name."""
    return AsyncOpenAI(
        base_url=f"{layout.gateway_url}/v1",
        api_key=read_admin_key(layout.state_dir),
        timeout=REQUEST_TIMEOUT_S,
        max_retries=12,
    )


def find_last(learning: dict[str, Any]) -> str | None:
    """The newest checkpoint that the engine holds: the one on trial, else the one that serves if it was taught."""
    if learning["trial"] is not None:
        return str(learning["trial"]["checkpoint"])
    return None if learning["stable"] == learning["first"] else str(learning["stable"])


def show_result(result: FinalResult) -> dict[str, Any]:
    """The figures of the examination that the report names."""
    return {
        "win_rate": result.win_rate_after.value,
        "win_rate_low": result.win_rate_after.low,
        "win_rate_high": result.win_rate_after.high,
        "win_rate_before": result.win_rate_before.value,
        "degenerate_before": result.degenerate_before["any"],
        "degenerate_after": result.degenerate_after["any"],
        "by_family": {name: share.value for name, share in result.by_family.items()},
        "examples": [asdict(example) for example in result.examples],
    }
