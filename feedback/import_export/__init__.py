"""Preferences and signals as files: exported from the log, imported into it.

Promises: what was exported is imported as the same events, under the same ids, so that readers of the log drop what
they have already; foreign preference datasets become choices of the source `import`, and files of messages and ideal answers
demonstrations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from feedback.errors import EventError, ImportExportError
from feedback.events import Event, decode_event, encode_event
from feedback.import_export.demonstrations import is_demonstration, read_demonstration
from feedback.import_export.foreign import Origin, read_foreign
from feedback.import_export.rows import CHOICE, SIGNAL, ChoiceRow, Row, SignalRow, is_trainable, make_row, read_row
from feedback.log.base import Log, NewRecord, Record

Kind = Literal["choices", "signals"]
ROWS: dict[Kind, type[Row]] = {"choices": ChoiceRow, "signals": SignalRow}
MAX_EVENT_BYTES = 900_000  # what every reader and broker takes

_TYPES: dict[Any, type[Row]] = {CHOICE: ChoiceRow, SIGNAL: SignalRow}
_BATCH = 500


def make_rows(records: Iterable[Record], kind: Kind, *, has_all: bool = False) -> Iterator[Row]:
    """The rows of the log's choices or signals, each event once; without has_all, only what TRL can learn from.

    What cannot be read is left out: it is among the dead letters.
    """
    seen: set[str] = set()
    for record in records:
        try:
            event = decode_event(record.headers, record.value)
        except EventError:
            continue
        row = make_row(event)
        if isinstance(row, ROWS[kind]) and event.id not in seen and (has_all or is_trainable(row)):
            seen.add(event.id)
            yield row


def read_event(columns: dict[str, Any], origin: Origin) -> Event:
    """The event of one row of a file, ours or foreign. Raises ImportExportError."""
    if columns.get("event_type") is None:
        event = (read_demonstration if is_demonstration(columns) else read_foreign)(columns, origin)
    else:
        kind = _TYPES.get(columns["event_type"])
        if kind is None:
            raise ImportExportError(f"this release does not import {columns['event_type']!r}")
        try:
            event = read_row(msgspec.convert(columns, kind))
        except msgspec.ValidationError as error:
            raise ImportExportError(str(error)) from None
    _check(event)
    return event


def append_events(log: Log, topic: str, events: Iterable[Event]) -> int:
    """Append events to the log under their own ids; return how many. Raises LogError.

    If it raises, some may have been appended; appending all of them again doubles nothing for readers.
    """
    num_events = 0
    batch: list[NewRecord] = []
    for event in events:
        headers, value = encode_event(event)
        batch.append(NewRecord(key=event.key.encode(), value=value, headers=headers))
        num_events += 1
        if len(batch) == _BATCH:
            log.append(topic, batch)
            batch = []
    if batch:
        log.append(topic, batch)
    return num_events


def _check(event: Event) -> None:
    """Raises ImportExportError if readers of the log could not read the event again."""
    try:
        headers, value = encode_event(event)
        decode_event(headers, value)
    except (EventError, ValueError, OverflowError, OSError) as error:
        raise ImportExportError(f"no reader would take it: {error}") from None
    if len(value) > MAX_EVENT_BYTES:
        raise ImportExportError(f"it takes {len(value):,} bytes, and the log takes {MAX_EVENT_BYTES:,}")
