"""Finds the one row that a batch fails for, so that the others are not lost, nor trained on twice.

Pure but for what it is given to run. Errors of the database and a stop are no row's fault and pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from feedback.errors import FeedbackError

T = TypeVar("T")


class RoundAborted(BaseException):
    """The process is stopping: the round goes on at the next start.

    No Exception, as asyncio's CancelledError is none: nothing that makes good a failed answer, row or step takes it for one.
    """


class NotFinite(ValueError):
    """A loss, gradient or score is infinite or no number."""


def run_isolated(
    batch: Sequence[T], run: Callable[[Sequence[T]], None], reject: Callable[[T, Exception], None]
) -> None:
    """Run on the batch; if that raises, on its halves, down to single rows: one that fails alone is rejected.

    `run` must leave nothing behind when it raises. `reject` may raise, if no row is to blame.
    """
    if not batch:
        return
    try:
        run(batch)
    except (SQLAlchemyError, FeedbackError):
        raise
    except Exception as error:  # whatever a row can do to tokenizer, template or model
        if len(batch) == 1:
            reject(batch[0], error)
            return
        half = len(batch) // 2
        run_isolated(batch[:half], run, reject)
        run_isolated(batch[half:], run, reject)
