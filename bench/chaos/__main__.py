"""kill -9 of everything under load: `python -m bench.chaos --seed N --kills 200 --log kafka --database postgresql`.

The clients' own notes are held against what gateway and trainer stored, once everything is up again and drained. The last
line is one JSON object; the exit status is 1 if a promise broke. What is injected and promised: docs/chaos.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from bench.chaos.run import MissedGoal, Run, run_chaos
from prefloop.machine import StartFailed, build_seed_policy
from prefloop.servers.kafka import KafkaFailed
from prefloop.servers.postgres import PostgresError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make chaos ARGS="…"', description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="when who is killed, and what clients say, follows from it")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--log", choices=["sqlite", "kafka"], default="kafka")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    parser.add_argument("--state-dir", type=Path, default=Path("state"), help="where the seed policy is, or is built")
    return parser.parse_args()


def main() -> int:
    """Run, and return the exit status."""
    arguments = parse_arguments()
    try:
        seed_policy = build_seed_policy(arguments.state_dir.resolve())
        run = Run(
            seed=arguments.seed,
            num_kills=arguments.kills,
            log=arguments.log,
            database=arguments.database,
            folder=arguments.state_dir.resolve() / "chaos",
            seed_policy=seed_policy,
        )
        figures, broken = asyncio.run(with_signals(run))
    except (StartFailed, KafkaFailed, PostgresError, MissedGoal) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    for sentence in broken:
        print(f"BROKEN  {sentence}")
    print(json.dumps(figures), flush=True)
    return 1 if broken else 0


async def with_signals(run: Run) -> tuple[dict[str, object], list[str]]:
    """SIGTERM clears away as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run_chaos(run)


if __name__ == "__main__":
    sys.exit(main())
