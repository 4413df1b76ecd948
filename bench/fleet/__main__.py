"""Two gateways, three engines, Kafka, PostgreSQL, S3 and a trainer on one machine, hurt while they learn: `python -m bench.fleet`.

The demo's people talk through the official OpenAI client until a checkpoint is promoted, while a gateway, an engine and the
broker are killed and the link between a gateway and the database is cut for 20 s. The last line is one JSON object; failed,
lost and duplicated must be 0, and the exit status is 1 if they are not. What counts as what: docs/fleet.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from bench.chaos.run import MissedGoal
from bench.fleet.run import Run, run_fleet
from prefloop.servers.kafka import KafkaFailed
from prefloop.servers.postgres import PostgresError
from prefloop.servers.s3 import S3Failed
from prefloop.startup import StartFailed, build_seed_policy


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make bench-fleet ARGS="…"', description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="who is hurt when, and what people say, follows from it")
    parser.add_argument("--stand-in", action="store_true", help="engines that cost nothing instead of vLLM, for a look")
    parser.add_argument("--seats", type=int, default=16, help="people who talk at a time")
    parser.add_argument("--pause-s", type=float, default=2.5, help="mean pause between two questions of one of them")
    parser.add_argument("--gap-s", type=float, default=30.0, help="mean pause before a fault")
    parser.add_argument("--round-every", type=int, default=300, help="choices that make a round due")
    parser.add_argument("--at-once", action="store_true", help="start the engines at once, not one after another")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="longest wait for a promotion")
    parser.add_argument("--state-dir", type=Path, default=Path(os.environ.get("PREFLOOP_STATE_DIR", "state")))
    return parser.parse_args()


def main() -> int:
    """Run, and return the exit status."""
    arguments = parse_arguments()
    try:
        run = Run(
            seed=arguments.seed,
            seats=arguments.seats,
            pause_s=arguments.pause_s,
            gap_s=arguments.gap_s,
            timeout_s=arguments.timeout_s,
            is_real=not arguments.stand_in,
            round_every=arguments.round_every,
            is_hasty=arguments.at_once,
            folder=arguments.state_dir.resolve() / "fleet",
            seed_policy=build_seed_policy(arguments.state_dir.resolve()),
        )
        figures, broken = asyncio.run(with_signals(run))
    except (StartFailed, KafkaFailed, PostgresError, S3Failed, MissedGoal) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    for sentence in broken:
        print(f"BROKEN  {sentence}")
    print(json.dumps(figures), flush=True)
    return 1 if broken or not figures["promotions"] else 0


async def with_signals(run: Run) -> tuple[dict[str, object], list[str]]:
    """SIGTERM clears away as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run_fleet(run)


if __name__ == "__main__":
    sys.exit(main())
