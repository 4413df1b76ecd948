"""Several worker processes of one gateway on one port: starts them, starts again the one that died, drains them together.

The kernel spreads connections over the workers' own listening sockets (SO_REUSEPORT). A worker is a whole gateway and a
member of the fleet. If none could ever start, the gateway ends; later, who dies is started again with back-off. If this
process is killed, its workers drain and end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError
from gateway.siblings import Place

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger("gateway.workers")

_HEALTHY_S = 30.0  # who ran so long starts anew at the shortest back-off
_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 10.0
_KILL_AFTER_S = 30.0  # beyond the drain
_RESEND_S = 1.0
_BACKLOG = 2048


class PortTaken(GatewayError):
    """The address cannot be listened on."""


@dataclass
class _Slot:
    """One place among the workers, and who fills it."""

    index: int
    process: BaseProcess | None = None
    started_at: float = 0.0
    not_before: float = 0.0
    backoff_s: float = _MIN_BACKOFF_S


@dataclass(frozen=True)
class Worker:
    """What a worker process has of its parent."""

    place: Place
    listener: socket.socket
    _started: int  # a pipe to the parent
    _lifeline: int  # a pipe that ends with the parent

    async def watch(self, server: uvicorn.Server) -> None:
        """Tell the parent once the server listens; drain when the parent is gone."""
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        os.write(self._started, b"1")
        asyncio.get_running_loop().add_reader(self._lifeline, self._leave, server)

    def _leave(self, server: uvicorn.Server) -> None:
        asyncio.get_running_loop().remove_reader(self._lifeline)
        logger.error("worker %d ends: its parent is gone", self.place.index)
        server.should_exit = True


class Workers:
    """`num_workers` processes that each run `serve`, which returns their exit status. Raises PortTaken.

    To be made and run by the main thread, before any other is started: the workers are forks.
    """

    def __init__(
        self, serve: Callable[[Worker], int], num_workers: int, host: str, port: int, drain_timeout_s: float
    ) -> None:
        self._serve = serve
        self._kill_after_s = drain_timeout_s + _KILL_AFTER_S
        self._place = Place(count=num_workers)
        self._reserved = _reserve(host, port)
        self._slots = [_Slot(index) for index in range(num_workers)]
        self._lifeline, self._held_end = os.pipe()
        self._started, self._tell_started = os.pipe()
        self._wake, self._alarm = socket.socketpair()
        for end in (self._started, self._wake.fileno(), self._alarm.fileno()):
            os.set_blocking(end, False)
        self._has_started = False
        self._is_told = False
        self._kill_at: float | None = None  # once the workers were told to end

    @property
    def port(self) -> int:
        """What they listen on."""
        return int(self._reserved.getsockname()[1])

    def run(self) -> int:
        """Run until a signal and the end of every worker. Returns the exit status."""
        gc.freeze()  # pages that no collection writes to stay shared
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)
        status = 0
        while True:
            if self._kill_at is None:
                self._start_due()
            alive = [slot.process for slot in self._slots if slot.process is not None]
            if not alive and self._kill_at is not None:
                return status
            connection.wait([*(process.sentinel for process in alive), self._wake, self._started], self._find_pause_s())
            _drain(self._wake.fileno())
            self._has_started |= _drain(self._started)
            if not self._reap():
                status, self._is_told = 1, True
            if self._is_told:
                self._stop()

    def _note_signal(self, number: int, frame: Any) -> None:
        self._is_told = True

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None and now >= slot.not_before:
                slot.process = multiprocessing.get_context("fork").Process(target=self._work, args=(slot.index,))
                slot.process.start()
                slot.started_at = now

    def _work(self, index: int) -> None:
        """In the worker's process."""
        os.close(self._held_end)
        signal.set_wakeup_fd(-1)
        listener = _bind(self._reserved.family, self._reserved.getsockname())
        listener.listen(_BACKLOG)
        self._reserved.close()
        worker = Worker(replace(self._place, index=index), listener, self._tell_started, self._lifeline)
        raise SystemExit(self._serve(worker))

    def _reap(self) -> bool:
        """See who has ended. False if that one could not start, and none ever had."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None or slot.process.exitcode is None:
                continue
            status, slot.process = slot.process.exitcode, None
            if self._kill_at is not None:
                continue
            if not self._has_started:
                logger.error("worker %d could not start, status %d", slot.index, status)
                return False
            was_healthy = now - slot.started_at > _HEALTHY_S
            slot.backoff_s = _MIN_BACKOFF_S if was_healthy else min(_MAX_BACKOFF_S, slot.backoff_s * 2)
            slot.not_before = now + slot.backoff_s
            logger.error("worker %d died, status %d; next in %.1f s", slot.index, status, slot.backoff_s)
        return True

    def _stop(self) -> None:
        """Tell them to end; again at every look, as one that has only begun may have missed it."""
        now = time.monotonic()
        if self._kill_at is None:
            self._kill_at = now + self._kill_after_s
        number = signal.SIGTERM if now < self._kill_at else signal.SIGKILL
        for slot in self._slots:
            if slot.process is not None and slot.process.pid is not None and slot.process.exitcode is None:
                os.kill(slot.process.pid, number)

    def _find_pause_s(self) -> float | None:
        """How long to wait at most; None for ever."""
        if self._kill_at is not None:
            return _RESEND_S
        now = time.monotonic()
        due = [slot.not_before - now for slot in self._slots if slot.process is None]
        return max(0.0, min(due)) if due else None


def _reserve(host: str, port: int) -> socket.socket:
    """A socket that holds the address and does not listen. Raises PortTaken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:  # without SO_REUSEPORT, which would share the port of another gateway
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
        return _bind(family, address)
    except OSError as error:
        raise PortTaken(f"cannot listen on {host}:{port}: {error}") from error


def _bind(family: int, address: Any) -> socket.socket:
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(address)
    return bound


def _drain(descriptor: int) -> bool:
    """Read what is there; whether there was anything."""
    try:
        return bool(os.read(descriptor, 4096))
    except BlockingIOError:
        return False
