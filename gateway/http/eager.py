"""Coroutines that run at once: from the read that brought a request to the write that sends it on, without a task.

A task costs more than what most requests do between two waits, and a turn of the event loop. So a handler is run by
hand as long as it waits for nothing but its engine, and becomes a task where it waits for anything else. What needs a
task around it (`asyncio.timeout`) asks for one first: `await enter_task()`.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Waitable:
    """Something that one coroutine waits for, and that is woken up in the very step in which it happens."""

    __slots__ = ("_loop", "_resume")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop  # asking for the running one is a system call
        self._resume: Callable[[], None] | None = None

    @types.coroutine
    def wait(self) -> Generator[Any, Any, None]:
        """Until `wake`; may return early, so whoever waits looks again."""
        if asyncio.current_task(self._loop) is None:
            yield self
            return
        future = self._loop.create_future()
        self._resume = lambda: None if future.done() else future.set_result(None)
        yield from future

    def wake(self) -> None:
        """Let the one that waits go on, if there is one: it may run before this returns."""
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()


class Eager:
    """One coroutine that runs at once. It must catch its own exceptions; `on_task` is told if it becomes a task."""

    __slots__ = ("_loop", "_on_task", "_task", "_work")

    def __init__(
        self,
        work: Coroutine[Any, Any, None],
        loop: asyncio.AbstractEventLoop,
        on_task: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._loop = loop
        self._work: Coroutine[Any, Any, None] | None = work
        self._on_task = on_task
        self._task: asyncio.Task[None] | None = None
        if asyncio.current_task(loop) is None:
            self._step()
        else:  # what runs in another's task would be cancelled and timed in its place
            self._become_task(work)

    def cancel(self) -> None:
        """Cancel it where it waits. Not to be called from within."""
        work = self._work
        if self._task is not None:
            self._task.cancel()
        elif work is not None:
            try:
                waits_for = work.throw(asyncio.CancelledError())
            except (StopIteration, asyncio.CancelledError):
                self._work = None
            else:
                self._wait_for(work, waits_for)

    def _step(self) -> None:
        work = self._work
        if work is None:
            return  # woken up after it was cancelled
        try:
            waits_for = work.send(None)
        except (StopIteration, asyncio.CancelledError):
            self._work = None
        else:
            self._wait_for(work, waits_for)

    def _wait_for(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        if isinstance(waits_for, Waitable):
            waits_for._resume = self._step
        else:
            self._become_task(_carry_on(work, waits_for))

    def _become_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = None
        self._task = self._loop.create_task(work)
        self._on_task(self._task)


@types.coroutine
def enter_task() -> Generator[None, None, None]:
    """Run as a task from here on."""
    if asyncio.current_task() is None:
        yield


async def _carry_on(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _delegate(work, waits_for)


@types.coroutine
def _delegate(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """What is left of a coroutine that waits already."""
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(sent)
    except StopIteration:
        return
