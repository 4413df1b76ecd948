"""Keeps the processes of one machine running.

Starts each service in a process group of its own, restarts it when it ends, and keeps the reason to be shown. Promises
that `stop` leaves no child behind, whatever the children's own children do. Does not watch for hangs: the gateway does
that for engines.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 15.0
HEALTHY_AFTER_S = 60.0  # a run this long forgets earlier failures
STOP_TIMEOUT_S = 20.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Service:
    """What to run. env is added to this process's own."""

    name: str
    argv: Sequence[str]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass
class ServiceState:
    """What an operator sees of a service."""

    name: str
    pid: int | None = None
    restarts: int = 0
    reason: str = ""
    started_at: float | None = None
    stopping: bool = False

    @property
    def is_running(self) -> bool:
        """Whether there is a process now."""
        return self.pid is not None

    def as_row(self) -> dict[str, object]:
        """What a status shows: name, state, restarts, reason."""
        state = "running" if self.is_running else "restarting"
        return {"name": self.name, "state": state, "restarts": self.restarts, "reason": self.reason}


def _die_with_parent() -> None:
    # A supervisor that is killed must not leave servers holding the ports.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def describe_exit(returncode: int) -> str:
    """Say in words how a process ended, from its return code."""
    if returncode < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-returncode).name}"
        return f"killed by signal {-returncode}"
    return "stopped" if returncode == 0 else f"exited with code {returncode}"


def last_error_line(log_path: Path) -> str:
    """The last line of a log that looks like an error, or its last line, at most 200 characters."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log_path.stat().st_size - 8192))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    errors = [line for line in lines[-40:] if "Error" in line or "error" in line]
    return (errors or lines or [""])[-1][:200]


class Supervisor:
    """Runs services until stopped. Call `start` for each, then `stop` once."""

    def __init__(self) -> None:
        self.states: dict[str, ServiceState] = {}
        self.events: deque[tuple[float, str]] = deque(maxlen=50)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping: dict[str, asyncio.Event] = {}
        self._beside: list[asyncio.Task[None]] = []

    def start(self, service: Service) -> None:
        """Run a service from now on; its output goes to its log."""
        service.log_path.parent.mkdir(parents=True, exist_ok=True)
        state = self.states[service.name] = ServiceState(service.name)
        self._stopping[service.name] = asyncio.Event()
        self._tasks[service.name] = asyncio.create_task(self._keep_running(service, state), name=service.name)

    async def _keep_running(self, service: Service, state: ServiceState) -> None:
        backoff_s, stopping = FIRST_BACKOFF_S, self._stopping[service.name]
        while not stopping.is_set():
            with service.log_path.open("ab") as log:
                returncode = await self._run_once(service, state, log, stopping)
            if stopping.is_set():
                return
            ran_s = time.time() - (state.started_at or time.time())
            backoff_s = FIRST_BACKOFF_S if ran_s > HEALTHY_AFTER_S else min(backoff_s * 2, MAX_BACKOFF_S)
            state.restarts += 1
            state.reason = describe_exit(returncode)
            detail = "" if returncode in (0, -signal.SIGKILL, -signal.SIGTERM) else last_error_line(service.log_path)
            state.reason += f": {detail}" if detail else ""
            self.events.append((time.time(), f"{service.name} {state.reason}; restarting in {backoff_s:.1f} s"))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), backoff_s)

    async def _run_once(self, service: Service, state: ServiceState, log: IO[bytes], stop: asyncio.Event) -> int:
        process = await asyncio.create_subprocess_exec(
            *service.argv,
            env={**os.environ, **service.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        state.pid, state.started_at = process.pid, time.time()
        try:
            stopping = asyncio.create_task(stop.wait())
            ending = asyncio.create_task(process.wait())
            await asyncio.wait({stopping, ending}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not ending.done():
                state.stopping = True
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(ending), STOP_TIMEOUT_S)
            # The engine's workers outlive a killed parent: the whole group goes before anything is started again.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return await ending
        finally:
            state.pid = None

    def run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that starts and ends services itself, until `stop`."""
        self._beside.append(asyncio.create_task(work))

    async def end(self, name: str) -> None:
        """End one service for good, and forget it. 20 s, then by force."""
        self._stopping[name].set()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        for known in (self._tasks, self._stopping, self.states):
            known.pop(name, None)

    async def stop(self) -> None:
        """End the services, the last started first: a client before what it calls. 20 s each, then by force."""
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        for name in reversed(list(self._tasks)):
            self._stopping[name].set()
            await asyncio.gather(self._tasks[name], return_exceptions=True)
