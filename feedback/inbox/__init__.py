"""The trainer's side of the log: what was read from it, and what of it could not be read."""

from __future__ import annotations

from feedback.inbox.intake import consume, load_offset, load_offsets, record_gap, restore, store_alone
from feedback.inbox.rows import (
    PreferenceRow,
    count_dead_letters,
    count_preferences,
    count_signals,
    load_preferences,
    load_signals,
    mark_used,
)
from feedback.inbox.splits import HELDOUT_SHARE, Split, choose_split, key_prompt
from feedback.inbox.tables import (
    dead_letter_outbox,
    dead_letters,
    discarded_letters,
    gaps,
    metadata,
    offsets,
    preferences,
    quarantine,
    signals,
)

__all__ = [
    "HELDOUT_SHARE",
    "PreferenceRow",
    "Split",
    "choose_split",
    "consume",
    "count_dead_letters",
    "count_preferences",
    "count_signals",
    "dead_letter_outbox",
    "dead_letters",
    "discarded_letters",
    "gaps",
    "key_prompt",
    "load_offset",
    "load_offsets",
    "load_preferences",
    "load_signals",
    "mark_used",
    "metadata",
    "offsets",
    "preferences",
    "quarantine",
    "record_gap",
    "restore",
    "signals",
    "store_alone",
]
