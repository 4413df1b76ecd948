"""What forty choices of one person change: `python -m bench.personal [--taste NAME] [--seed N] [--quick]`.

Every run is the product on SmolLM2 as one person starts it, in a state directory of its own: four tastes, two seeds. A run that is
done is kept and not run again (`--again` does). The last line is one JSON object: win rates of the last checkpoint beside
checkpoint 0, by the person's true taste, on prompts that they never asked, and their mean with its 95% lower bound over
persons. Exits 1 if a run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.personal.run import Setup, run_one
from feedback.outages import describe_error
from prefloop import smollm
from prefloop.demo.report import write_json
from trainer.math.intervals import estimate_mean

ROOT = Path(__file__).parents[2] / "state"
TASTES = ("brief", "thorough", "warm-lists", "plain-prose")
SEEDS = (1, 2)
QUICK_QUESTIONS = 24


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.personal", description=__doc__)
    parser.add_argument("--taste", choices=TASTES, action="append", help="only this taste; may be repeated")
    parser.add_argument("--seed", type=int, action="append", help="only this seed; may be repeated")
    parser.add_argument("--choices", type=int, default=40, help="decisive choices of the person")
    parser.add_argument("--quick", action="store_true", help="one taste, one seed, half the held-out prompts")
    parser.add_argument("--again", action="store_true", help="also runs that are done")
    parser.add_argument("--port", type=int, default=9500, help="the gateway's; engine and trainer take the next two")
    parser.add_argument("--state-dir", type=Path, default=ROOT, help="where the model is, or is fetched to")
    return parser.parse_args()


def list_setups(arguments: argparse.Namespace) -> list[Setup]:
    """The runs that are asked for."""
    tastes = arguments.taste or (TASTES[:1] if arguments.quick else TASTES)
    seeds = arguments.seed or (SEEDS[:1] if arguments.quick else SEEDS)
    more = {"num_questions": QUICK_QUESTIONS} if arguments.quick else {}
    return [Setup(taste, seed, arguments.choices, **more) for seed in seeds for taste in tastes]


def name_setup(setup: Setup) -> str:
    """What a run's files are called: by all that makes it another one."""
    return f"{setup.taste}-{setup.seed}-{setup.num_choices}-{setup.num_questions}"


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The bench's one JSON object."""
    rates = [run["win_rate"] for run in runs]
    mean = estimate_mean(rates)  # a run is one person: each is one observation
    return {
        "bench": "personal",
        "runs": len(runs),
        "win_rate": mean.mean,
        "win_rate_low": mean.lower(0.025) if len(runs) > 1 else runs[0].get("win_rate_low", 0.0),
        "lowest_win_rate": min(rates),
        "lowest_bound": min(run.get("win_rate_low", 0.0) for run in runs),
        "minutes": statistics.fmean(run["minutes"] for run in runs),
        "by_run": {
            f"{run['taste']}/{run['seed']}": {
                "win_rate": round(run["win_rate"], 3),
                "low": round(run.get("win_rate_low", 0.0), 3),
                "high": round(run.get("win_rate_high", 1.0), 3),
                "checkpoint": run["checkpoint"],
            }
            for run in runs
        },
    }


def show_runs(runs: list[dict[str, Any]], console: Console) -> None:
    """A table, a line a run."""
    table = Table("taste", "seed", "win rate", "interval", "degenerate before, after", "minutes", "checkpoint")
    for run in runs:
        table.add_row(
            run["taste"],
            str(run["seed"]),
            f"{run['win_rate']:.2f}",
            f"{run.get('win_rate_low', 0):.2f} to {run.get('win_rate_high', 1):.2f}",
            f"{run.get('degenerate_before', 0):.2f}, {run.get('degenerate_after', 0):.2f}",
            f"{run['minutes']:.0f}",
            run["checkpoint"] or "none",
        )
    console.print(table)


def main() -> int:
    arguments, console = parse_arguments(), Console(stderr=True)
    folder, runs, num_failed = ROOT / "bench" / "personal", [], 0
    try:
        model = smollm.build_smollm(arguments.state_dir).resolve()
    except Exception as error:  # the command's edge: what fetching raises is its own
        console.print(f"[red]{error}[/red]")
        return 1
    for setup in list_setups(arguments):
        kept = folder / f"{name_setup(setup)}.json"
        if not kept.exists() or arguments.again:
            try:
                found = asyncio.run(run_one(setup, model, folder / name_setup(setup), arguments.port, console))
            except Exception as error:  # whatever services and engine do: one run does not end the others
                console.print(f"[red]{setup.taste}, seed {setup.seed}: {describe_error(error)}[/red]")
                num_failed += 1
                continue
            write_json(kept, found)
        runs.append(json.loads(kept.read_text(encoding="utf-8")))
    if runs:
        show_runs(runs, console)
        print(json.dumps(summarise(runs)), flush=True)
    return 1 if num_failed or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
