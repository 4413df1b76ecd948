"""`prefloop sync` as a process: asks the gateway, runs the sidecar until SIGTERM, serves its pages."""

from __future__ import annotations

import fcntl
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import httpx
import msgspec

from feedback.errors import SigningKeyError, StoreUnavailable
from feedback.settings import load_settings
from feedback.signing import read_trusted_keys
from prefloop.pages import start_pages
from prefloop.sync.metrics import SyncMetrics
from prefloop.sync.settings import RunningSyncSettings
from prefloop.sync.sidecar import CheckpointList, GatewayAway, ListedCheckpoint, Sidecar

log = logging.getLogger("prefloop.sync")

TIMEOUT_S = 10.0
MAX_PAUSE_S = 10.0


def run_sync() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = load_settings(RunningSyncSettings)
    section = settings.sync
    root = Path(section.directory)
    try:
        store, trusted = settings.open_store(), read_trusted_keys(settings.trusted_keys_file)
        root.mkdir(parents=True, exist_ok=True)
        lock = lock_directory(root)
    except (StoreUnavailable, SigningKeyError, OSError) as error:
        log.error("%s", error)
        return 1
    assert store is not None  # the settings require it
    metrics, stopping = SyncMetrics(), threading.Event()
    sidecar = Sidecar(
        store, root, build_lister(section.gateway_url, settings.key_path), trusted, metrics, section.retry_refused_s
    )
    server = start_pages(section.host, section.port, metrics.registry, lambda: sidecar.problem)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    log.info("fetching from %s into %s; pages on port %d", store.url, root, server.server_port)
    thread = threading.Thread(
        target=keep_in_sync, args=(sidecar, metrics, stopping, section.poll_s), name="sync", daemon=True
    )
    thread.start()
    stopping.wait()  # a download in progress is cut: it goes on after the next start
    server.shutdown()
    lock.close()
    return 0


def keep_in_sync(sidecar: Sidecar, metrics: SyncMetrics, stopping: threading.Event, poll_s: float) -> None:
    """Look until the process is to stop; what fails is logged once, counted and tried again."""
    pause_s, last_error, is_checked = poll_s, "", False
    while not stopping.is_set():
        of, error = "", ""
        try:
            if not is_checked:
                sidecar.check_present()
                is_checked = True
            sidecar.reconcile()
        except GatewayAway as caught:
            of, error = "gateway", str(caught)
        except StoreUnavailable as caught:
            of, error = "store", str(caught)
        except OSError as caught:
            of, error = "disk", str(caught)
        if not of:
            metrics.last_success.set(time.time())
            pause_s, last_error = poll_s, ""
        else:
            metrics.errors.labels(of).inc()
            if error != last_error:
                log.warning("trying again: %s", error)
            pause_s, last_error = min(2 * pause_s, MAX_PAUSE_S), error
        stopping.wait(pause_s)


def build_lister(gateway_url: str, key_path: Path) -> Callable[[], list[ListedCheckpoint]]:
    """What asks the gateway for its checkpoints; the key's file is read every time, as it may be replaced."""
    client = httpx.Client(base_url=gateway_url, timeout=TIMEOUT_S)

    def list_checkpoints() -> list[ListedCheckpoint]:
        try:
            key = key_path.read_text().strip()
            answer = client.get("/operator/v1/checkpoints", headers={"authorization": f"Bearer {key}"})
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=CheckpointList).data
        except (OSError, ValueError, httpx.HTTPError) as error:
            raise GatewayAway(f"{gateway_url} does not say what may serve: {error}") from error

    return list_checkpoints


def lock_directory(root: Path) -> IO[str]:
    """Hold a directory for this process alone, until the file is closed. Raises OSError if another one holds it."""
    file = (root / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OSError(f"another process keeps {root} in sync: {error.strerror}") from error
    return file
