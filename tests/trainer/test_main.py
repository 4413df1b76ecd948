"""What the trainer's process sets before torch is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from trainer.process import KEPT_PRIMITIVES, limit_kept_primitives


def test_few_compiled_products_are_kept_unless_somebody_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bulk pass memory grew by 469 MB from pair 500 to 1,500 at oneDNN's default of 1,024, by 158 MB at 32."""
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    limit_kept_primitives()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == KEPT_PRIMITIVES == "32"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    limit_kept_primitives()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


STOPS = """
import subprocess, sys, threading, time
import numpy  # brings threads of its own, before anybody asks for signals
from trainer.process import stop_on_signals
stopping = threading.Event()
stop_on_signals(stopping, [lambda: print("last", flush=True)], 7)
child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"])
print(child.pid, flush=True)
stopping.wait()
print("stopping", flush=True)
if "hangs" in sys.argv:
    time.sleep(60)
child.terminate()
print(child.wait(20), flush=True)
"""


@pytest.mark.parametrize(
    ("how", "code", "said"), [("ends", 0, ["stopping", "-15"]), ("hangs", 7, ["stopping", "last"])]
)
def test_a_signal_is_heard_whatever_threads_there_are_and_children_hear_their_own(
    how: str, code: int, said: list[str]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPS, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = {process.stdout.readline().strip(), process.stdout.readline().strip()}
    assert "up" in first
    process.send_signal(signal.SIGTERM)
    assert [process.stdout.readline().strip() for _ in said] == said  # not to the end: a child may hold it open
    assert process.wait(30) == code
    if how == "hangs":
        [child] = first - {"up"}
        os.kill(int(child), signal.SIGKILL)
