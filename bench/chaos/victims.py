"""The processes that are killed: each starts again on its own address and data, and says whether its service is back.

Our own processes, the broker and the database look alike to who kills them. Nothing here decides when.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from prefloop.servers.kafka import Broker, KafkaFailed
from prefloop.servers.postgres import Postgres, PostgresError

_PR_SET_PDEATHSIG = 1
_STOP_TIMEOUT_S = 20.0
_LOOK_S = 0.05
_libc = ctypes.CDLL(None)


class Victim(Protocol):
    """Something that runs, dies and is started again."""

    name: str

    @property
    def pid(self) -> int | None:
        """Of the last life, None before the first."""

    def is_running(self) -> bool:
        """Whether its process lives."""

    async def start(self, faults: str = "") -> None:
        """Begin a life; it may not be up yet when this returns. faults: as PREFLOOP_FAULTS takes them."""

    async def is_up(self) -> bool:
        """Whether it gives its service."""

    async def kill(self) -> bool:
        """SIGKILL; False if there was nothing to kill."""

    async def stop(self) -> None:
        """End it in order."""


class Service:
    """A process of ours. is_up: asked while the process runs."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        log_path: Path,
        is_up: Callable[[], Awaitable[bool]],
    ) -> None:
        self.name, self.env = name, dict(env)
        self._argv, self._log_path, self._ask = argv, log_path, is_up
        self._process: asyncio.subprocess.Process | None = None
        self._num_lives = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, faults: str = "") -> None:
        self._num_lives += 1
        dice = f"{self.env.get('PREFLOOP_FAULTS_SEED', '')}-{self.name}-{self._num_lives}"  # others in every life
        env = {**os.environ, **self.env, "PREFLOOP_FAULTS": faults, "PREFLOOP_FAULTS_SEED": dice}
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    async def is_up(self) -> bool:
        return self.is_running() and await self._ask()

    async def kill(self) -> bool:
        if self._process is None or not self.is_running():
            return False
        self._process.kill()
        return await self._process.wait() == -signal.SIGKILL

    async def stop(self) -> None:
        if self._process is None or not self.is_running():
            return
        self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT_S)
        await self.kill()


class BrokerVictim:
    """Kafka. Its `start` waits until it takes requests, so it runs beside us."""

    name = "broker"

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._starting: asyncio.Task[bool] | None = None

    @property
    def pid(self) -> int | None:
        return self._broker.pid if self._broker.is_running else None

    def is_running(self) -> bool:
        return self._broker.is_running or (self._starting is not None and not self._starting.done())

    async def start(self, faults: str = "") -> None:
        self._starting = asyncio.create_task(asyncio.to_thread(self._start))

    def _start(self) -> bool:
        try:
            self._broker.start()
        except (KafkaFailed, AttributeError):  # it was killed meanwhile
            return False
        return True

    async def is_up(self) -> bool:
        return self._starting is not None and self._starting.done() and self._broker.is_running

    async def kill(self) -> bool:
        while not self._broker.is_running:
            if self._starting is None or self._starting.done():
                return False
            await asyncio.sleep(_LOOK_S)  # its process is about to be there
        await asyncio.to_thread(self._broker.kill)
        if self._starting is not None:
            await self._starting
        return True

    async def stop(self) -> None:
        if self._starting is not None:
            await self._starting
        await asyncio.to_thread(self._broker.stop)


class DatabaseVictim:
    """PostgreSQL, all of its processes at once."""

    name = "postgresql"

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._is_up = False

    @property
    def pid(self) -> int | None:
        return self._server.pid if self._is_up else None

    def is_running(self) -> bool:
        return self._is_up

    async def start(self, faults: str = "") -> None:
        with contextlib.suppress(PostgresError):
            await asyncio.to_thread(self._server.start)
            self._is_up = True

    async def is_up(self) -> bool:
        return self._is_up

    async def kill(self) -> bool:
        was_up, self._is_up = self._is_up, False
        await asyncio.to_thread(self._server.kill)
        return was_up

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
