"""Tells an outage, which passes, from a mistake of ours and from one row's fault, and logs each as it deserves: a line, or
where it happened.

A loop that tries again every second would else fill the log with the same sixty lines while a database is down.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sqlalchemy import exc

from feedback.errors import DatabaseError, FeedbackError

_OUTAGES = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, exc.DisconnectionError, OSError, TimeoutError)


def is_outage(error: BaseException) -> bool:
    """Whether a service does not answer, or is full; what the database says of a statement of ours is none."""
    if isinstance(error, DatabaseError) and error.__cause__ is not None:
        return is_outage(error.__cause__)
    return isinstance(error, (FeedbackError, *_OUTAGES))


def log_failure(logger: logging.Logger, what: str, error: Exception, fields: Mapping[str, str] | None = None) -> None:
    """Log at ERROR that `what` failed. `fields`: what else the line carries."""
    if is_outage(error):
        reason = str(error).partition("\n")[0] or type(error).__name__  # SQLAlchemy adds the statement
        logger.error("%s: %s", what, reason, extra=fields)
    else:
        logger.error("%s", what, exc_info=error, extra=fields)


def is_of_data(error: BaseException) -> bool:
    """Whether the fault may lie in the values of one row, and neither in the service nor in the schema."""
    if isinstance(error, exc.SQLAlchemyError):
        is_of_value = isinstance(error, exc.StatementError) and not isinstance(error, exc.DBAPIError)
        return is_of_value or isinstance(error, exc.DataError)
    return isinstance(error, (ValueError, TypeError, ArithmeticError, LookupError, RecursionError))


def describe_error(error: BaseException) -> str:
    """The error's kind and words, as any database stores them."""
    return make_storable(f"{type(error).__name__}: {error}")


def make_storable(text: str) -> str:
    """At most 1,000 characters without NUL and lone surrogates, as any database stores them."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()[:1000]
