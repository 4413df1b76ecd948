"""Coroutines that run at once: without a task while they wait for a Waitable, as one for anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.http.eager import Eager, Waitable, enter_task


class Stage:
    """Runs work outside of any task, as a protocol's callbacks do, and keeps what it says and which tasks it became."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.said: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def run(self, fn: Callable[[], Any]) -> Any:
        done = self.loop.create_future()
        self.loop.call_soon(lambda: done.set_result(fn()))
        return await done

    async def start(self, work: Coroutine[Any, Any, None]) -> Eager:
        eager = await self.run(lambda: Eager(work, self.loop, self.tasks.append))
        assert isinstance(eager, Eager)
        return eager


async def test_it_runs_to_its_first_wait_and_on_in_the_step_that_wakes_it() -> None:
    stage = Stage()
    door = Waitable()

    async def work() -> None:
        stage.said.append("begun")
        await door.wait()
        stage.said.append("woken")

    await stage.start(work())
    assert stage.said == ["begun"]
    door.wake()
    assert (stage.said, stage.tasks) == (["begun", "woken"], [])
    door.wake()  # nobody waits any more


async def test_it_becomes_a_task_where_it_waits_for_anything_else() -> None:
    stage = Stage()
    door = Waitable()

    async def work() -> None:
        await door.wait()
        await asyncio.sleep(0.001)
        stage.said.append("slept")
        await door.wait()  # now by a future
        stage.said.append("woken")

    await stage.start(work())
    await stage.run(door.wake)
    (task,) = stage.tasks
    await asyncio.sleep(0.02)
    assert stage.said == ["slept"]
    door.wake()
    await task
    assert stage.said == ["slept", "woken"]


async def test_a_timeout_is_for_a_task_that_was_asked_for() -> None:
    stage = Stage()

    async def work() -> None:
        await enter_task()
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(10)
        except TimeoutError:
            stage.said.append("timed out")

    await stage.start(work())
    await stage.tasks[0]
    assert stage.said == ["timed out"]


async def test_cancelling_reaches_it_where_it_waits_with_or_without_a_task() -> None:
    stage = Stage()
    door = Waitable()

    async def work(wait: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            await wait()
        finally:
            stage.said.append("cleaned up")

    async def wait_at_the_door() -> None:
        await door.wait()

    without = await stage.start(work(wait_at_the_door))
    without.cancel()
    assert stage.said == ["cleaned up"]
    door.wake()  # comes too late, and is not an error
    within = await stage.start(work(lambda: asyncio.sleep(10)))
    within.cancel()
    await asyncio.gather(*stage.tasks, return_exceptions=True)
    assert stage.said == ["cleaned up", "cleaned up"] and stage.tasks[0].cancelled()


async def test_an_error_of_what_it_waits_for_reaches_it_in_the_task() -> None:
    stage = Stage()
    failing: asyncio.Future[None] = stage.loop.create_future()

    async def work() -> None:
        try:
            await failing
        except OSError as error:
            stage.said.append(str(error))

    await stage.start(work())
    failing.set_exception(OSError("gone"))
    await stage.tasks[0]
    assert stage.said == ["gone"]


async def test_what_begins_within_a_task_gets_one_of_its_own_when_it_asks() -> None:
    stage = Stage()

    async def work() -> None:
        await enter_task()
        task = asyncio.current_task()
        stage.said.append("own" if task in stage.tasks else "another's")

    Eager(work(), stage.loop, stage.tasks.append)
    await stage.tasks[0]
    assert stage.said == ["own"]


async def test_work_that_is_cancelled_before_its_tasks_first_step_cleans_up() -> None:
    """A client that goes away in the turn in which its request became a task: nothing of the request may stay."""
    stage = Stage()
    turn: asyncio.Future[None] = stage.loop.create_future()

    async def work(waits: Callable[[], Any]) -> None:
        try:
            await waits()
        except asyncio.CancelledError:
            stage.said.append("cancelled")
            raise
        finally:
            stage.said.append("cleaned up")

    def start_and_cancel(waits: Callable[[], Any]) -> None:
        Eager(work(waits), stage.loop, stage.tasks.append).cancel()

    async def wait_for_turn() -> None:
        await turn

    await stage.run(lambda: start_and_cancel(enter_task))
    await stage.run(lambda: start_and_cancel(wait_for_turn))
    await asyncio.gather(*stage.tasks, return_exceptions=True)
    assert stage.said == ["cancelled", "cleaned up"] * 2 and turn.cancelled()
