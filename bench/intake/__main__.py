"""How fast the trainer takes in what a team starts with: imported pairs, read from the log, placed and stored.

Every size runs in a process of its own, on an SQLite log and database in a temporary folder: rows are read as a foreign
dataset, appended to the log, and then consumed as the trainer does. CPU seconds count, as other work shares the cores. The
last line is one JSON object: rows_per_cpu_s of the large size; ratio_60000_over_6000, the CPU time of the large size over
that of the small one (10 where nothing grows); peak_mb of the process that took in the large size.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feedback.database import Writer, create_tables, open_database
from feedback.import_export import append_events, read_event
from feedback.import_export.foreign import Origin
from feedback.inbox import metadata
from feedback.log import open_log
from trainer.run.intake.clusters import place_rows
from trainer.run.intake.consumer import consume_all
from trainer.run.status.metrics import Metrics

_TOPIC = "prefloop.feedback"
_MAX_RECORDS = 500
_REPEATED, _CHANGED = 0.10, 0.05  # shares of rows with a prompt that was there, and with one word of such changed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make bench-intake ARGS="…"', description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000, help="the large size; the small one is a tenth of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one", action="store_true", help="measure this size alone, in this process")
    return parser.parse_args()


def make_rows(num_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a preference dataset with prompts of 8 to 60 words, some of them repeated or nearly so."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvwz", k=rng.randint(2, 9))) for _ in range(5000)]
    prompts: list[list[str]] = []
    for _ in range(num_rows):
        kind = rng.random()
        if prompts and kind < _REPEATED + _CHANGED:
            prompt = list(rng.choice(prompts))
            if kind < _CHANGED:
                prompt[rng.randrange(len(prompt))] = rng.choice(words)
        else:
            prompt = rng.choices(words, k=rng.randint(8, 60))
            prompts.append(prompt)
        chosen, rejected = (" ".join(rng.choices(words, k=rng.randint(10, 100))) for _ in range(2))
        yield {"prompt": " ".join(prompt), "chosen": chosen, "rejected": rejected}


def measure(num_rows: int, seed: int) -> dict[str, float]:
    """CPU and wall seconds of the import and of the intake, and this process's peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        log = open_log(f"sqlite:{Path(folder) / 'log.db'}")
        database = open_database(f"sqlite:{Path(folder) / 'trainer.db'}")
        create_tables(database, metadata)
        origin = Origin("default", "import", time.time())
        imported = time.process_time()
        append_events(log, _TOPIC, (read_event(row, origin) for row in make_rows(num_rows, seed)))
        writer = Writer(database)
        writer.run(lambda connection: place_rows(connection, [])).result()  # whatever is done once
        begun, begun_at = time.process_time(), time.monotonic()
        metrics = Metrics()
        num_read = 0
        while num_now := consume_all(log, _TOPIC, log.partitions(_TOPIC), database, writer, _MAX_RECORDS, metrics):
            num_read += num_now
        ended, ended_at = time.process_time(), time.monotonic()
        writer.close()
        log.close()
        database.dispose()
    assert num_read == num_rows
    return {
        "rows": num_rows,
        "import_cpu_s": begun - imported,
        "intake_cpu_s": ended - begun,
        "intake_wall_s": ended_at - begun_at,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_alone(num_rows: int, seed: int) -> dict[str, float]:
    """The same in a new process."""
    command = [sys.executable, "-m", "bench.intake", "--one", "--rows", str(num_rows), "--seed", str(seed)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    print(printed, flush=True)
    return dict(json.loads(printed))


def main() -> None:
    arguments = parse_arguments()
    if arguments.one:
        print(json.dumps(measure(arguments.rows, arguments.seed)))
        return
    small, large = (measure_alone(rows, arguments.seed) for rows in (arguments.rows // 10, arguments.rows))
    figures = {
        "rows_per_cpu_s": round(large["rows"] / large["intake_cpu_s"]),
        "ratio_60000_over_6000": round(large["intake_cpu_s"] / small["intake_cpu_s"], 2),
        "peak_mb": round(large["peak_mb"]),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
