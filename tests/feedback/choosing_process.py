"""A process that chooses and signals without end and writes each acknowledged id to stdout: for killing.

Arguments: state dir, run. Several threads work at once so that commits are shared, the relay runs beside them, and
every id is printed only after its future has resolved.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from pathlib import Path

import sqlalchemy as sa

from feedback.choices import comparisons, store_comparison
from feedback.database import Writer, create_tables, open_database
from feedback.log import open_log
from feedback.relay import Relay
from feedback.signals import StoredSignal, record_signal
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_comparison, make_signal

NUM_THREADS = 8


def main(state_dir: Path, run: str) -> None:
    engine = open_database(f"sqlite:{state_dir / 'gateway.db'}")
    create_tables(engine, comparisons.metadata)
    writer = Writer(engine)
    Relay(engine, writer, open_log(f"sqlite:{state_dir / 'log.db'}"), "t", max_batch=20, poll_s=0.01).start()
    threads = [threading.Thread(target=choose_on, args=(writer, f"{run}-{i}")) for i in range(NUM_THREADS)]
    for thread in threads:
        thread.start()


def choose_on(writer: Writer, name: str) -> None:
    for number in itertools.count():
        comparison = make_comparison(f"{name}-{number}")
        writer.run(lambda connection, c=comparison: store_comparison(connection, c)).result()
        writer.run(lambda c, i=comparison.id: record_choice(c, i, "first", None, False, "api", 1001.0)).result()
        os.write(1, f"{comparison.id}\n".encode())  # one write, so a kill leaves no half acknowledgement
        stored = writer.run(lambda c, i=comparison.id: signal_once(c, i)).result()
        os.write(1, f"{stored.id} {comparison.id}\n".encode())


def signal_once(connection: sa.Connection, key: str) -> StoredSignal:
    return record_signal(connection, make_signal(f"chatcmpl-{key}"), fingerprint=key, idempotency_key=key)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
