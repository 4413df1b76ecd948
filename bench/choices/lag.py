"""How long a choice takes from its acknowledgement to the trainer's table: through the relay and the log, for real.

Forty choices a second, each sent alone. The table is looked at every few milliseconds, which is the error.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import sqlalchemy as sa

from bench.choices.stage import make_token, open_secrets, run_gateway, show_comparisons
from bench.gateway.servers import Server
from feedback.database import open_database
from feedback.inbox import preferences
from feedback.schema import migrate
from prefloop.servers.ports import find_port

_EVERY_S = 0.025
_LOOK_EVERY_S = 0.004
_PATIENCE_S = 60.0
_WARM_UP = 20  # choices until consumer and relay have met


class NotTrainable(Exception):
    """Choices did not arrive."""


def measure_lag(folder: Path, num_choices: int, log_url: str = "") -> list[float]:
    """Milliseconds of each choice, sorted. Raises NotTrainable, ServerFailed."""
    url = f"sqlite:///{folder / 'gateway.db'}"
    comparisons = show_comparisons(url, num_choices + _WARM_UP)
    secrets = open_secrets(folder)
    with run_trainer(folder, log_url), run_gateway(folder, url, log_url) as gateway, watch_arrivals(folder) as arrived:
        acknowledged: dict[str, float] = {}
        with httpx.Client(base_url=gateway.url, timeout=30) as http:
            for comparison in comparisons:
                body = {"preferred": "first", "token": make_token(comparison, secrets)}
                began = time.monotonic()
                http.post(f"/v1/comparisons/{comparison.id}/choice", json=body).raise_for_status()
                acknowledged[comparison.id] = time.monotonic()
                time.sleep(max(0.0, began + _EVERY_S - time.monotonic()))
        deadline = time.monotonic() + _PATIENCE_S
        while len(arrived) < len(comparisons) and time.monotonic() < deadline:
            time.sleep(0.05)
    measured = comparisons[_WARM_UP:]
    missing = sum(comparison.id not in arrived for comparison in measured)
    if missing:
        raise NotTrainable(f"{missing} of {len(measured)} choices did not reach the trainer in {_PATIENCE_S:g} s")
    return sorted(max(0.0, arrived[each.id] - acknowledged[each.id]) * 1000 for each in measured)


@contextlib.contextmanager
def run_trainer(folder: Path, log_url: str) -> Iterator[Server]:
    """A trainer without a base policy: it takes in, and never learns."""
    port = find_port()
    env = {
        "PREFLOOP_CONFIG": os.devnull,
        "PREFLOOP_STATE_DIR": str(folder),
        "PREFLOOP_LOG_URL": log_url,
        "PREFLOOP_TRAINER__PORT": str(port),
        "PREFLOOP_TRAINER__NICE": "0",
    }
    server = Server("trainer", [sys.executable, "-m", "trainer.main"], port, folder / "trainer.log", env)
    try:
        server.wait_until("/status", 120)
        yield server
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.stop()


@contextlib.contextmanager
def watch_arrivals(folder: Path) -> Iterator[dict[str, float]]:
    """When each comparison's preference was first seen, on the monotonic clock."""
    database = open_database(f"sqlite:///{folder / 'trainer.db'}")
    migrate(database, "trainer")
    arrived: dict[str, float] = {}
    closing = threading.Event()

    def look() -> None:
        last_id = 0
        columns = sa.select(preferences.c.id, preferences.c.comparison_id).order_by(preferences.c.id)
        with database.connect() as connection:
            while not closing.wait(_LOOK_EVERY_S):
                rows = connection.execute(columns.where(preferences.c.id > last_id)).all()
                connection.rollback()
                now = time.monotonic()
                for row in rows:
                    arrived.setdefault(row.comparison_id, now)
                    last_id = row.id

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield arrived
    finally:
        closing.set()
        watcher.join()
        database.dispose()
