"""Writes at the end of the event loop's turn: what many connections have to say goes out in one go.

Each write may wake a process that sleeps, which costs more than the write; one that is woken to several stays awake. With
16 connections this makes a third more requests a second. Where turns have one write each, there is nothing to wait for:
after some such turns most writes go out at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

logger = logging.getLogger("gateway.outbox")

_LONE_TURNS = 4  # of one write each, in a row, before writes go out at once
_AT_ONCE = 7  # writes: then a turn is looked at again


class Outbox:
    """What is to be written in this turn, in order. For one event loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_lone = self._num_at_once = 0

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write now or soon, in order; never, if the transport is closed before."""
        if not self._waiting:
            if self._num_at_once:
                self._num_at_once -= 1
                _write(transport, data)
                return
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush)
        self._waiting.append((transport, data))

    def flush(self) -> None:
        """Write now what waits."""
        waiting, self._waiting = self._waiting, []
        self._num_lone = self._num_lone + 1 if len(waiting) == 1 else 0
        if self._num_lone >= _LONE_TURNS:
            self._num_at_once = _AT_ONCE
        for transport, data in waiting:
            _write(transport, data)


def _write(transport: asyncio.Transport, data: bytes) -> None:
    if not transport.is_closing():  # uvloop's raises until its end is told
        try:
            transport.write(data)
        except Exception:  # the others' writes must go out
            logger.exception("a connection took no more")
            transport.abort()


def _drop(data: bytes) -> None:
    """A write after the end."""


class Outlet:
    """A connection's transport as a protocol uses it: writes wait for the end of the turn, an end waits for writes."""

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self.write: Callable[[bytes], None] = partial(outbox.write, transport)
        self.is_closing = transport.is_closing
        self.abort = transport.abort
        self.can_write_eof = transport.can_write_eof

    def write_eof(self) -> None:
        """End what we say; an answer that is still on its way to this connection goes nowhere."""
        self._outbox.flush()
        self._transport.write_eof()
        self.write = _drop

    def close(self) -> None:
        self._outbox.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
