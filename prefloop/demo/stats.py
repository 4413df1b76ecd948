"""What the simulated people did: the counts that the demo's screen and report show."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

log = logging.getLogger("people")

NUM_RECENT_STYLES = 400


@dataclass
class Stats:
    """What the people did. `requests` counts chat requests, `acks` the choices the gateway acknowledged."""

    run: str = ""
    requests: int = 0
    failed_requests: int = 0
    comparisons: int = 0
    choices: int = 0
    acks: int = 0
    refused_choices: int = 0
    retried_choices: int = 0
    first_answer_at: float | None = None
    last_error: str = ""
    preferred: Counter[str] = field(default_factory=Counter)
    recent_styles: deque[str] = field(default_factory=lambda: deque(maxlen=NUM_RECENT_STYLES))

    def as_dict(self) -> dict[str, Any]:
        """What the stats file holds."""
        plain = {known.name: getattr(self, known.name) for known in fields(self)}
        styles = Counter(self.recent_styles)
        shares = {style: round(num / len(self.recent_styles), 4) for style, num in styles.items()}
        return plain | {"preferred": dict(self.preferred), "recent_styles": shares, "updated_at": time.time()}

    def record_failure(self, error: BaseException) -> None:
        """Count a request that failed for good, and keep why."""
        self.failed_requests += 1
        self.last_error = f"{type(error).__name__}: {error}"[:300]
        log.warning("request failed: %s", self.last_error)


def resume_stats(path: Path, run: str) -> Stats:
    """Return the counts of the same run if the people were killed and started again, else fresh ones."""
    with suppress(OSError, ValueError, AttributeError):
        saved = json.loads(path.read_text(encoding="utf-8"))
        if run and saved.get("run") == run:
            kept = {known.name: saved[known.name] for known in fields(Stats) if known.name in saved}
            kept.pop("recent_styles", None)
            return Stats(**kept | {"preferred": Counter(saved.get("preferred", {}))})
    return Stats(run=run)
