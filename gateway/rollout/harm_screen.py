"""Has a classifier of the operator's look at the answers of duels, and keeps what it says: each as a report of harm.

Off the hot path: in a thread, a few duels at a time, by the gateway that leads. A duel that it has not looked at yet is none for the
guardrail. An answer over which it fails is logged, and stays unseen. Single answers are not looked at.
"""

import asyncio
import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from feedback.database import Writer
from feedback.events import Comparison
from feedback.outages import log_failure
from feedback.screening import load_unscreened, store_screened
from gateway.errors import MissingExtra
from gateway.tables.rollouts import list_tries
from gateway.tables.rows import RolloutRow

if TYPE_CHECKING:
    from gateway.rollout.controller import Controller

Screen = Callable[[list[dict[str, Any]], str], bool]
"""(messages of the request, answer) -> whether the answer is harmful."""
_BATCH = 16
_PAUSE_S = 1.0
_log = logging.getLogger(__name__)


def load_screen(name: str) -> Screen | None:
    """The function that `rollout.harm_screen` names as module:function; None if it names none. Raises MissingExtra."""
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise MissingExtra(f"rollout.harm_screen: {name} cannot be loaded ({error})") from error
    if not callable(found):
        raise MissingExtra(f"rollout.harm_screen: {name} is no function")
    screen: Screen = found
    return screen


class HarmScreen:
    """Screens the duels of the rollout that is on. find_row: it, where this gateway leads; else None."""

    def __init__(self, writer: Writer, screen: Screen, find_row: Callable[[], RolloutRow | None]) -> None:
        self._writer, self._screen, self._find_row = writer, screen, find_row
        self.num_failed = 0

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                num = await self.screen_some()
            except Exception as error:
                log_failure(_log, "the harm screen's verdicts could not be kept", error)
                num = 0
            if num < _BATCH:
                await asyncio.sleep(_PAUSE_S)

    async def screen_some(self) -> int:
        """Look at the oldest duels that nobody has looked at; returns how many there were."""
        row = self._find_row()
        if row is None:
            return 0

        def load(conn: Connection) -> list[Comparison]:
            return load_unscreened(conn, list_tries(conn, row), _BATCH)

        waiting = await self._writer.aread(load)
        if not waiting:
            return 0
        verdicts = await asyncio.to_thread(lambda: {each.id: self._judge(each) for each in waiting})
        await self._writer.arun(lambda conn: store_screened(conn, verdicts))
        return len(waiting)

    def _judge(self, comparison: Comparison) -> dict[str, bool]:
        """Both answers, or neither: one alone says nothing of their ratio."""
        try:
            return {
                one.arm: bool(self._screen(comparison.messages, one.text))
                for one in (comparison.first, comparison.second)
            }
        except Exception as error:
            self.num_failed += 1
            log_failure(_log, f"the harm screen failed over comparison {comparison.id}", error)
            return {}


def build_screen(writer: Writer, name: str, controller: "Controller") -> HarmScreen | None:
    """The screen of the settings, for the rollout that this gateway leads; None without one. Raises MissingExtra."""
    screen = load_screen(name)

    def find_row() -> RolloutRow | None:
        is_leading = controller.membership.fence is not None and controller.current is not None
        return controller.current.row if is_leading and controller.current is not None else None

    return None if screen is None else HarmScreen(writer, screen, find_row)
