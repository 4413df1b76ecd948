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

_is_stepping = False  # whether what runs now is driven by an Eager; a task inside whose step one runs is another's


class Waitable:
    """Something that one coroutine waits for, and that is woken up in the very step in which it happens."""

    _resume: Callable[[], None] | None = None

    def then(self, resume: Callable[[], None]) -> None:
        """Call `resume` at the next `wake`, in place of a coroutine that waits."""
        self._resume = resume

    @types.coroutine
    def wait(self) -> Generator[Any, Any, None]:
        """Until `wake`; may return early, so whoever waits looks again."""
        if _is_stepping:
            yield self
            return
        future = asyncio.get_running_loop().create_future()
        self.then(lambda: None if future.done() else future.set_result(None))
        yield from future

    def wake(self) -> None:
        """Let the one that waits go on, if there is one: it may run before this returns."""
        resume = self._resume
        if resume is not None:
            self._resume = None
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
        self._step()

    def cancel(self) -> None:
        """Cancel it where it waits. Not to be called from within."""
        if self._task is not None:
            self._task.cancel()
        elif self._work is not None:
            self._step(asyncio.CancelledError())

    def _step(self, error: BaseException | None = None) -> None:
        global _is_stepping
        work = self._work
        if work is None:
            return  # woken up after it was cancelled
        was_stepping, _is_stepping = _is_stepping, True
        try:
            waits_for = work.send(None) if error is None else work.throw(error)
        except (StopIteration, asyncio.CancelledError):
            self._work = None
            return
        finally:
            _is_stepping = was_stepping
        if isinstance(waits_for, Waitable):
            waits_for.then(self._step)
        else:
            rest = _carry_on(work, waits_for)
            rest.send(None)  # a task that is cancelled before its first step would never tell the work
            self._become_task(rest)

    def _become_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = None
        self._task = self._loop.create_task(work)
        self._on_task(self._task)


@types.coroutine
def enter_task() -> Generator[None, None, None]:
    """Run as a task from here on."""
    if _is_stepping:
        yield


async def _carry_on(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _delegate(work, waits_for)


@types.coroutine
def _delegate(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """What is left of a coroutine that waits already. Yields once before that, so that it has begun when its task has not."""
    try:
        try:
            yield
        except BaseException as error:
            if waits_for is not None:
                waits_for.cancel()  # as a task does with what it waits for
            waits_for = work.throw(error)
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(sent)
    except StopIteration:
        return
