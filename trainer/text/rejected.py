"""What happens to a row that learning cannot use: it is handed to a `Reject`, with its reason, and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from feedback.outages import describe_error

log = logging.getLogger("trainer.text")

Reject = Callable[[str, str, Exception], None]
"""Called with the row's event id, the part of learning it failed in, and the error."""


def log_rejected(event_id: str, part: str, error: Exception) -> None:
    """A `Reject` that only logs."""
    log.warning("row %s cannot be used (%s): %s", event_id, part, describe_error(error))
