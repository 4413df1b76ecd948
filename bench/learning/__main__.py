"""How many choices the policy needs: arms and controls in simulated worlds, a cell at a time, each kept on disk.

`python -m bench.learning [--quick] [--model smollm2]`. A killed run goes on where it was; cells of the same configuration are not
measured again, nor are those that come with the project (`measured/`) unless asked for by `--fresh`. The last line is one JSON
object: {world: {noise: {arm: choices to 80% of the ceiling's gain, with interval}}}. Files: results, one picture a world and table.md
in <state-dir>/bench-learning.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.learning.arms import PRESETS, Arm, make_arms, run_arm, with_grid
from bench.learning.assistant import load_assistant
from bench.learning.cells import MEASURED, Cell, Point, Results
from bench.learning.plots import draw_world
from bench.learning.seeds import build_policy
from bench.learning.stage import Stage
from bench.learning.table import CEILING, describe_rates, summarise, write_table
from bench.learning.worlds import load_world
from prefloop.smollm import build_smollm
from trainer.learn.sampling.sampler import SamplingParameters
from trainer.model.backbone import Backbone
from trainer.sections.model import ModelSection

ROOT = Path(__file__).parents[2] / "state"
TINY = SamplingParameters(temperature=0.7, top_p=1.0, max_tokens=48)
SMOLLM2 = SamplingParameters(temperature=0.7, top_p=1.0, max_tokens=96)
WORLDS = {"capitals": (0.0, 0.2, 0.4), "elements": (0.0, 0.2, 0.4), "animals": (0.2,)}
SEEDS = (0, 1, 2)
QUICK_ARMS = {"ceiling": None, "offline": (50, 100, 200, 400), "online_dpo": (50, 100, 200), "full": (50, 100, 200)}
SMOLLM2_GRID = (100, 200, 400)


@dataclass(frozen=True)
class Job:
    """A cell and the arm that it is of."""

    cell: Cell
    arm: Arm


def list_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Everything to measure, in order: what is worth most first."""
    every = make_arms(arguments.model)
    if arguments.model == "smollm2":
        arms = {CEILING: every[CEILING]} | {name: with_grid(every[name], SMOLLM2_GRID) for name in ("offline", "full")}
        worlds, seeds = {"assistant": (0.2,)}, (0, 1)
    elif arguments.quick:
        arms = {
            name: every[name] if grid is None else with_grid(every[name], grid) for name, grid in QUICK_ARMS.items()
        }
        worlds, seeds = {"capitals": (0.2,)}, (0,)
    else:
        arms, worlds, seeds = every, WORLDS, SEEDS
    if arguments.arms:
        arms = {name: arm for name, arm in arms.items() if name in {*arguments.arms, CEILING}}
    if arguments.worlds:
        worlds = {name: noises for name, noises in worlds.items() if name in arguments.worlds}
    if arguments.noises:
        worlds = {
            name: tuple(noise for noise in noises if noise in arguments.noises) for name, noises in worlds.items()
        }
    return [
        Job(Cell(arguments.model, world, 0.0 if name == CEILING else noise, seed, name, arm.settings), arm)
        for seed in arguments.seeds or seeds
        for world, noises in worlds.items()
        for noise in noises
        for name, arm in arms.items()
    ]


class Stages:
    """The stage of the world and seed under way; one at a time is in memory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir, self._directory = state_dir, state_dir / "bench-learning"
        self._key: tuple[str, str, int] | None = None
        self._stage: Stage | None = None

    def get(self, cell: Cell) -> Stage:
        """The stage of a cell; its seed policy is trained if it is not there."""
        key = (cell.model, cell.world, cell.seed)
        if self._stage is None or self._key != key:
            self._stage = self._make(cell)
            self._key = key
        return self._stage

    def _make(self, cell: Cell) -> Stage:
        kept = self._directory / "stages" / f"{cell.model}-{cell.world}-{cell.seed}"
        if cell.model == "smollm2":
            backbone = Backbone.load(build_smollm(self._state_dir), ModelSection(), seed=cell.seed)
            kept = kept.with_name("smollm2-assistant")  # one policy, whatever the people's seed
            return Stage(backbone, load_assistant(), kept, SMOLLM2, num_pool=4, num_references=2)
        world = load_world(cell.world)
        policy = build_policy(world, cell.seed, self._directory / "policies")
        return Stage(Backbone.load(policy, ModelSection(), seed=cell.seed), world, kept, TINY)


def measure(job: Job, stages: Stages, results: Results) -> dict[int, Point]:
    """The cell's points, those on disk and those that are missing; each is kept as soon as it is there."""
    points = results.load(job.cell)
    if all(n in points for n in job.arm.manner.grid):
        return points
    stage = stages.get(job.cell)
    for n, point in run_arm(job.arm, stage, job.cell.noise, job.cell.seed, points):
        points[n] = point
        results.save(job.cell, points)
        rate = sum(mean * k for mean, k in point.wins.values()) / sum(k for _, k in point.wins.values())
        print(f"    {n:5d} choices: win rate {rate:.3f}, wrong {point.wrong:.3f}, {point.cpu_s:.0f} CPU s", flush=True)
    return points


def gather(
    jobs: list[Job], measured: dict[str, dict[int, Point]]
) -> dict[tuple[str, float], dict[str, list[dict[int, Point]]]]:
    """Points by world and noise, then by arm, seed by seed. The ceiling of a world stands at each of its noises."""
    found: dict[tuple[str, float], dict[str, list[dict[int, Point]]]] = {}
    places = dict.fromkeys((job.cell.world, job.cell.noise) for job in jobs if job.cell.arm != CEILING)
    for world, noise in places:
        seen: dict[str, list[dict[int, Point]]] = {}
        for key, job in {job.cell.key: job for job in jobs}.items():
            belongs = job.cell.world == world and (job.cell.arm == CEILING or job.cell.noise == noise)
            if belongs and key in measured:
                seen.setdefault(job.cell.arm, []).append(measured[key])
        found[world, noise] = seen
    return found


def conclude(jobs: list[Job], measured: dict[str, dict[int, Point]], out: Path) -> dict[str, Any]:
    """Write tables and pictures; returns the last line."""
    summary: dict[str, Any] = {}
    tables: list[str] = []
    panels: dict[str, dict[str, Any]] = {}
    targets: dict[str, dict[str, float]] = {}
    for (world, noise), cells in gather(jobs, measured).items():
        said = summarise(cells)
        summary.setdefault(world, {})[f"{noise:g}"] = said
        tables.append(write_table(f"{world}, label noise {noise:.0%}", cells))
        lines: dict[str, list[Any]] = {}
        for arm, n, rate, _ in describe_rates(cells):
            lines.setdefault(arm, []).append((n, rate))
        panels.setdefault(world, {})[f"label noise {noise:.0%}"] = lines
        targets.setdefault(world, {})[f"label noise {noise:.0%}"] = said["target"]
    for world, drawn in panels.items():
        (out / f"{world}.svg").write_text(draw_world(f"Win rate against choices: {world}", drawn, targets[world]))
    (out / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    return summary


def show_progress(jobs: list[Job]) -> Iterator[Job]:
    started = time.monotonic()
    for number, job in enumerate(jobs, 1):
        cell = job.cell
        spent = (time.monotonic() - started) / 60
        print(
            f"{number}/{len(jobs)} {cell.world}, noise {cell.noise:.0%}, seed {cell.seed}: {cell.arm} ({spent:.0f} min)",
            flush=True,
        )
        yield job


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.learning", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one world, one noise, one seed, three arms: some 20 minutes"
    )
    parser.add_argument("--model", choices=list(PRESETS), default="tiny")
    parser.add_argument("--arms", nargs="*", choices=list(make_arms("tiny")), help="only these")
    parser.add_argument("--worlds", nargs="*", help="only these")
    parser.add_argument("--noises", nargs="*", type=float, help="only these")
    parser.add_argument("--seeds", nargs="*", type=int, help="these seeds of people and policy")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes that share the table; whole worlds and seeds each"
    )
    parser.add_argument("--fresh", action="store_true", help="measure also what comes with the project")
    parser.add_argument("--share", default="", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--state-dir", type=Path, default=ROOT, help="where seed policies and results are kept")
    return parser.parse_args()


def share_jobs(jobs: list[Job], number: int, of: int) -> list[Job]:
    """What the process `number` of so many measures: whole stages, since one stage is in memory at a time."""
    stages = list(dict.fromkeys((job.cell.model, job.cell.world, job.cell.seed) for job in jobs))
    mine = set(stages[number::of])
    return [job for job in jobs if (job.cell.model, job.cell.world, job.cell.seed) in mine]


def measure_beside(number: int, of: int) -> subprocess.Popen[bytes]:
    """Another process with the same arguments and a share of the jobs."""
    command = [sys.executable, "-m", "bench.learning", *sys.argv[1:], "--share", f"{number}/{of}"]
    return subprocess.Popen(command)


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.INFO)
    torch.set_num_threads(arguments.threads)
    out = arguments.state_dir / "bench-learning"
    results = Results(out / "cells", None if arguments.fresh else MEASURED)
    stages = Stages(arguments.state_dir)
    jobs = list({job.cell.key: job for job in list_jobs(arguments)}.values())
    if arguments.share:
        number, of = map(int, arguments.share.split("/"))
        for job in show_progress(share_jobs(jobs, number, of)):
            measure(job, stages, results)
        return
    others = [measure_beside(number, arguments.jobs) for number in range(1, arguments.jobs)]
    for job in show_progress(share_jobs(jobs, 0, arguments.jobs)):
        measure(job, stages, results)
    failed = [process.args for process in others if process.wait()]
    if failed:
        raise SystemExit(f"{len(failed)} of the other processes failed; what they measured is kept")
    measured = {job.cell.key: results.load(job.cell) for job in jobs}
    summary = conclude(jobs, measured, out)
    print((out / "table.md").read_text())
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
