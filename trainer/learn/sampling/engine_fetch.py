"""Many completions fetched from engines in the background, no more at a time than its slots allow.

One request never asks for more answers than slots are free. Gives raw choices: what they mean is read by whom waits for
them. Ends by itself, calls `on_end` once whatever happens, and can be given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

from trainer.learn.hearing import Hear
from trainer.learn.sampling.engine_client import Engine

Choice = dict[str, Any]

HEARD_EVERY_S = 0.5  # while somebody waits


class GivenUp(Exception):
    """The samples are not needed any more."""


class Slots:
    """So many answers may be under way at a time; `limit` may change meanwhile."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken, self._is_closed = limit, 0, False
        self._changed = threading.Condition()

    def take(self, most: int) -> int:
        """Wait for a free slot; returns how many were taken, 1 to most. Raises GivenUp once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._taken < self._limit)
            if self._is_closed:
                raise GivenUp
            number = min(most, self._limit - self._taken)
            self._taken += number
            return number

    def release(self, number: int) -> None:
        """Give slots back."""
        with self._changed:
            self._taken -= number
            self._changed.notify_all()

    def set_limit(self, limit: int) -> None:
        """Allow so many from now on; what is under way goes on."""
        with self._changed:
            self._limit = limit
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody take one any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Fetch:
    """n answers to each of the bodies, which say everything but n; answer k of a body has its seed + k.

    choose_limit: how many may be under way now; asked every look_every_s. on_end: called once, by the thread that fetches.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        bodies: Sequence[dict[str, Any]],
        n: int,
        *,
        num_threads: int,
        timeout_s: float,
        choose_limit: Callable[[], int],
        look_every_s: float,
        on_end: Callable[[], None],
    ) -> None:
        self._engines, self._bodies, self._n, self._timeout_s = engines, bodies, n, timeout_s
        self._choose_limit, self._look_every_s, self._on_end = choose_limit, look_every_s, on_end
        self._slots = Slots(choose_limit())
        self._choices: list[list[Choice]] = []
        self._num_answered = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(num_threads,), name="sampling", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread.is_alive()

    def wait(self, hear: Hear) -> list[list[Choice]]:
        """The choices, body by body. hear: told the share of bodies that are answered; what it raises gives up the others.

        Raises EngineFailed if an engine failed, GivenUp after `give_up`.
        """
        while self._thread.is_alive():
            try:
                hear(self._num_answered / max(1, len(self._bodies)))
            except BaseException:
                self.give_up()
                raise
            self._thread.join(HEARD_EVERY_S)
        if self._failure is not None:
            raise self._failure
        return self._choices

    def give_up(self) -> None:
        """Ask for nothing more; returns at once. Requests under way are left to their engines."""
        self._slots.close()

    def _run(self, num_threads: int) -> None:
        try:
            with ThreadPoolExecutor(num_threads, "sampling") as pool:
                futures = [pool.submit(self._ask, place) for place in range(len(self._bodies))]
                try:
                    self._choices = self._watch(futures)
                finally:
                    self._slots.close()  # what waits for a slot when one has failed
        except Exception as error:  # whatever it is, whoever waits is told
            self._failure = error
        finally:
            self._on_end()

    def _watch(self, futures: Sequence[Future[list[Choice]]]) -> list[list[Choice]]:
        """Keep the slots as many as may be, until all has come or one has failed."""
        left: set[Future[list[Choice]]] = set(futures)
        while left:
            done, left = wait(left, self._look_every_s, FIRST_EXCEPTION)
            for future in done:
                future.result()
            self._num_answered += len(done)
            self._slots.set_limit(self._choose_limit())
        return [future.result() for future in futures]

    def _ask(self, place: int) -> list[Choice]:
        """All answers to one body, in as many requests as slots come free for."""
        engine, body = self._engines[place % len(self._engines)], self._bodies[place]
        choices: list[Choice] = []
        while len(choices) < self._n:
            number = self._slots.take(self._n - len(choices))
            try:
                asked = {**body, "n": number, "seed": body["seed"] + len(choices)}  # the engine adds 1 for each further
                choices += engine.complete(asked, self._timeout_s)
            finally:
                self._slots.release(number)
        return choices
