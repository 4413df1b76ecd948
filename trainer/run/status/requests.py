"""An operator's wish for a round now, handed from the status server's threads to the learner's. One at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundRequest:
    """A round that somebody asked for. from_base: on a full replay, begun from the base."""

    from_base: bool = False


class RoundRequests:
    """The wish that waits, if any. Lost when the process ends: it was for now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: RoundRequest | None = None

    def ask(self, request: RoundRequest) -> bool:
        """Ask for a round; False if one is asked for already."""
        with self._lock:
            if self._waiting is not None:
                return False
            self._waiting = request
            return True

    def look(self) -> RoundRequest | None:
        """What is asked for, if anything."""
        with self._lock:
            return self._waiting

    @contextmanager
    def taking(self, *open_after: type[Exception]) -> Iterator[RoundRequest | None]:
        """What is asked for, which is done with afterwards; not after one of these errors, nor a stop: it is tried again."""
        taken = self.look()
        try:
            yield taken
        except open_after:
            raise
        except Exception:
            self._clear()
            raise
        self._clear()

    def _clear(self) -> None:
        with self._lock:
            self._waiting = None
