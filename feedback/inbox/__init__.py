"""The trainer's side of the log: what was read from it, and what of it could not be read."""

from __future__ import annotations

from feedback.inbox.intake import consume, load_offset, load_offsets, record_gap, restore, store_alone
from feedback.inbox.rows import (
    count_dead_letters,
    count_preferences,
    count_signals,
    mark_used,
)
from feedback.inbox.splits import (
    UNDECIDED,
    UNUSED,
    Arrival,
    Place,
    Placement,
    describe_arrival,
    key_prompt,
    place_nowhere,
)
from feedback.inbox.tables import (
    dead_letter_outbox,
    dead_letters,
    demonstrations,
    discarded_letters,
    gaps,
    metadata,
    offsets,
    preferences,
    prompt_bands,
    prompt_clusters,
    quarantine,
    signals,
)

__all__ = [
    "UNDECIDED",
    "UNUSED",
    "Arrival",
    "Place",
    "Placement",
    "consume",
    "count_dead_letters",
    "count_preferences",
    "count_signals",
    "dead_letter_outbox",
    "dead_letters",
    "demonstrations",
    "describe_arrival",
    "discarded_letters",
    "gaps",
    "key_prompt",
    "load_offset",
    "load_offsets",
    "mark_used",
    "metadata",
    "offsets",
    "place_nowhere",
    "preferences",
    "prompt_bands",
    "prompt_clusters",
    "quarantine",
    "record_gap",
    "restore",
    "signals",
    "store_alone",
]
