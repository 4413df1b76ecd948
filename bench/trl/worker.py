"""A process that is asked for one task at a time, one JSON object a line each way; what it logs goes to stderr.

`serve` is the worker's side, `Worker` the bench's. No import of the project: TRL's environment runs this file too.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Task = Callable[[dict[str, Any]], dict[str, Any]]


class WorkerFailed(Exception):
    """The worker died or its task raised; the message holds its traceback."""


def serve(tasks: Mapping[str, Task]) -> None:
    """Answer tasks from stdin until it closes. Libraries that print to stdout print to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = tasks[asked.pop("task")](asked)
        except Exception:  # the bench says what went wrong
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


def forget_peak_memory() -> None:
    """Begin a new peak of resident memory, where the kernel allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def read_peak_mb() -> float:
    """Highest resident memory of this process in MiB since its start, or since `forget_peak_memory`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


class Worker:
    """A worker process; `ask` waits for its answer."""

    def __init__(self, argv: list[str], env: Mapping[str, str], cwd: Path) -> None:
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}, cwd=cwd
        )

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Raises WorkerFailed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"{task}: the worker ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{task}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
