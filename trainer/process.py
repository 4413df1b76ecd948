"""What every process of the trainer does as it starts: how it ends, what torch may keep, whether its base is there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.settings import TrainerSettings

STOP_WITHIN_S = 1.5
KEPT_PRIMITIVES = "32"  # oneDNN keeps 1,024 by default, each with its code and memory, one for every shape of a batch
SEED_MARKER = "seed.json"  # written last by trainer.seed


def stop_on_signals(stopping: threading.Event, last: Sequence[Callable[[], None]] = (), code: int = 0) -> None:
    """Hear of signals in a thread of its own: the main thread may be inside torch for seconds. Called by the main thread.

    A process that has not ended by itself in time ends with `code`, after it called each of `last`, which may grow meanwhile.
    """
    # No mask: libraries have threads from their import on that would take the signal, and processes that are started would inherit it.
    received, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)  # written to by whichever thread the signal meets
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        os.read(received, 1)
        stopping.set()
        threading.Event().wait(STOP_WITHIN_S)
        for call in last:
            with suppress(Exception):
                call()
        os._exit(code)  # nothing is lost: whatever was under way begins again

    threading.Thread(target=wait, name="signals", daemon=True).start()


def limit_kept_primitives() -> None:
    """Keep few of oneDNN's compiled products: batches have hundreds of shapes. Before torch computes for the first time."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT_PRIMITIVES)


def is_base_ready(settings: TrainerSettings) -> bool:
    """Whether the base can be loaded: a whole directory, or a hub id."""
    directory = Path(settings.base)
    if directory == settings.state_dir / "seed":
        return (directory / SEED_MARKER).is_file()
    return (directory / "config.json").is_file() or not (directory.exists() or directory.is_absolute())
