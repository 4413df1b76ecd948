"""How the `prefloop feedback` commands show events, counts and dead letters to people.

What users wrote is shown as quoted text without control characters: it can neither move the cursor nor be read as markup.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feedback.dead_letters import DeadLetter
from feedback.errors import EventError
from feedback.events import Choice, Comparison, Demonstration, Erasure, Event, Signal, decode_event
from feedback.log.base import Record
from feedback.quality.bias import Interval
from feedback.quality.satisfaction import Satisfaction
from feedback.quality.statistics import Counts, Statistics

_STYLES = {
    "choice": "green",
    "comparison": "cyan",
    "signal": "magenta",
    "demonstration": "blue",
    "erasure": "yellow",
    "unreadable": "red",
}
_SAID = ("thumb", "rating", "edited_text", "comment")


def quote(text: str, width: int = 60) -> str:
    """Text on one line, in quotes, cut to `width`, without what a terminal would act on."""
    short = text if len(text) <= width else text[: width - 1] + "…"
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)
    return f'"{shown}"'


def describe_record(record: Record) -> Text:
    """One line: when, what, where, and what was said."""
    try:
        event = decode_event(record.headers, record.value)
        kind, told = event.type.split(".")[1], _describe(event)
    except EventError as error:
        kind, told = "unreadable", f"{type(error).__name__}: {quote(str(error), 120)}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.timestamp_ms / 1000))
    place = f"{record.partition}:{record.offset}"
    return Text.assemble((when, "dim"), "  ", (f"{place:>8}", "dim"), "  ", (f"{kind:<13}", _STYLES[kind]), "  ", told)


def record_as_json(record: Record) -> str:
    """The same as one JSON object, the event whole."""
    place: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
    }
    try:
        said: dict[str, Any] = {"event": decode_event(record.headers, record.value)}
    except EventError as error:
        said = {"error": type(error).__name__, "reason": str(error)}
    return msgspec.json.encode(place | said).decode()


def print_statistics(console: Console, found: Statistics) -> None:
    """Tables for the three sides of the road."""
    if gateway := found.gateway:
        share = f" ({gateway.choices / gateway.comparisons:.0%} of what was shown)" if gateway.comparisons else ""
        console.print(f"[bold]gateway[/bold]  {gateway.comparisons:,} comparisons, {gateway.choices:,} choices{share}")
        waiting = f"{gateway.outbox:,} wait for the log"
        if gateway.outbox_oldest_age_s is not None:
            waiting += f", the oldest for {_format_age(gateway.outbox_oldest_age_s)}"
        console.print(f"         {gateway.signals:,} signals; {waiting}")
    else:
        console.print("[bold]gateway[/bold]  no database yet")
    if found.log is not None:
        _print_log(console, found)
    else:
        console.print("[bold]log[/bold]      none yet")
    if trainer := found.trainer:
        dead = sum(trainer.dead_letters.values())
        lost = sum(gap.to_offset - gap.from_offset for gap in trainer.gaps)
        console.print(f"[bold]trainer[/bold]  {trainer.preferences:,} choices, {trainer.signals:,} signals stored")
        console.print(
            f"         {_mark(dead)} dead letters{_list(trainer.dead_letters)}, {trainer.discarded:,} discarded;"
            f" {_mark(len(trainer.gaps))} gaps, {lost:,} records"
        )
    else:
        console.print("[bold]trainer[/bold]  no database yet")
    if side := found.trainer or found.gateway:
        _print_counts(
            console,
            {
                "policy": side.by_policy,
                "app": side.by_app,
                "verdict": side.by_verdict,
                "asked": side.by_asked,
                "share": {share or "not said": num for share, num in side.by_share.items()},
            },
            side.by_day,
        )
    if found.satisfaction:
        _print_satisfaction(console, found.satisfaction)


def print_letters(console: Console, letters: list[DeadLetter]) -> None:
    """One line a letter."""
    table = Table("place", "error", "reason", "key", "bytes", "buried", "discarded")
    for letter in letters:
        table.add_row(
            f"{letter.record.partition}:{letter.record.offset}",
            letter.error,
            Text(quote(letter.reason, 80)[1:-1]),
            Text(quote(_decode(letter.record.key), 24)[1:-1]),
            f"{len(letter.record.value):,}",
            _when(letter.buried_at),
            "" if letter.discard_reason is None else Text(quote(letter.discard_reason, 40)[1:-1]),
        )
    console.print(table)


def print_letter(console: Console, letter: DeadLetter) -> None:
    """Everything about one letter, its bytes too."""
    record = letter.record
    table = Table(show_header=False, box=None)
    table.add_row("place", f"{record.topic}\\[{record.partition}] offset {record.offset}")
    table.add_row("error", Text(f"{letter.error}: {quote(letter.reason, 2000)[1:-1]}"))
    table.add_row("buried", _when(letter.buried_at))
    if letter.discarded_at is not None:
        table.add_row(
            "discarded", Text(f"{_when(letter.discarded_at)}: {quote(letter.discard_reason or '', 500)[1:-1]}")
        )
    table.add_row("key", Text(repr(record.key)))
    for name, value in sorted(record.headers.items()):
        table.add_row(Text(quote(name)[1:-1]), Text(repr(value)[1:]))
    console.print(table)
    console.print(Text(repr(record.value)[1:]), soft_wrap=True)


def letter_as_dict(letter: DeadLetter) -> dict[str, Any]:
    """A letter for JSON; bytes become base64, as msgspec writes them, and text beside it where they are UTF-8."""
    record = letter.record
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "error": letter.error,
        "reason": letter.reason,
        "buried_at": letter.buried_at,
        "discarded_at": letter.discarded_at,
        "discard_reason": letter.discard_reason,
        "key": record.key,
        "headers": {name: _decode(value) for name, value in record.headers.items()},
        "value": record.value,
        "text": _decode(record.value),
    }


def _describe(event: Event) -> str:
    match event.data:
        case Choice() as choice:
            strength = "" if choice.strength is None else f" {choice.strength:g}"
            harmful = " harmful" if choice.harmful else ""
            said = f"{choice.preferred}{strength}{harmful} after {choice.seconds_to_decide:.1f} s"
            return f"{said}  {_about(choice.comparison)}"
        case Comparison() as comparison:
            return f"{comparison.asked}  {_about(comparison)}"
        case Signal() as signal:
            said = ", ".join(
                f"{name} {quote(str(value), 40) if name in ('edited_text', 'comment') else value}"
                for name in _SAID
                if (value := getattr(signal, name)) is not None
            )
            return (
                f"{said or signal.kind}  {_names(signal.policy, signal.app)}  {quote(signal.completion_id, 50)[1:-1]}"
            )
        case Demonstration() as demonstration:
            names = _names(demonstration.policy, demonstration.app)
            return f"{demonstration.channel}  {names}  {quote(demonstration.answer)}"
        case Erasure() as erasure:
            return quote(erasure.subject)


def _about(comparison: Comparison) -> str:
    asked = comparison.messages[-1].get("content") if comparison.messages else ""
    words = quote(asked if isinstance(asked, str) else str(asked))
    return f"{_names(comparison.policy, comparison.app)}  {quote(comparison.id, 40)[1:-1]}  {words}"


def _names(policy: str, app: str) -> str:
    return f"{quote(policy, 30)[1:-1]}/{quote(app, 30)[1:-1]}"


def _print_log(console: Console, found: Statistics) -> None:
    assert found.log is not None
    num_records = sum(row.end - row.begin for row in found.log)
    console.print(
        f"[bold]log[/bold]      {found.topic}: {num_records:,} records in {len(found.log)} partitions,"
        f" {found.lag:,} still to read",
        highlight=False,
    )
    if found.lag:
        table = Table("partition", "begin", "end", "stored", "published", "lag")
        for row in found.log:
            values = (row.partition, row.begin, row.end, row.stored, row.committed, row.lag)
            table.add_row(*("-" if value is None else f"{value:,}" for value in values))
        console.print(table)


def _print_satisfaction(console: Console, rows: Sequence[Satisfaction]) -> None:
    """Of those who were asked at random: the share to whom one answer at least would do."""
    table = Table("asked at random", "slice", "verdicts", "satisfied", "thumbs", "up")
    for row in rows:
        table.add_row(
            Text(quote(row.arm, 30)[1:-1]),
            Text(quote(row.slice, 40)[1:-1]),
            f"{row.satisfied.num:,}",
            _share(row.satisfied),
            f"{row.thumbs_up.num:,}",
            _share(row.thumbs_up),
        )
    console.print(table)


def _share(found: Interval) -> str:
    return f"{found.estimate:.0%} ({found.low:.0%} to {found.high:.0%})" if found.num else ""


def _print_counts(console: Console, columns: dict[str, Counts], days: Counts) -> None:
    columns = columns | {"day": dict(list(days.items())[-14:])}
    table = Table(*(name for column in columns for name in (column, "choices")))
    rows = [list(counts.items()) for counts in columns.values()]
    for number in range(min(20, max((len(row) for row in rows), default=0))):
        cells = [row[number] if number < len(row) else ("", "") for row in rows]
        table.add_row(
            *(Text(quote(cell, 30)[1:-1]) if isinstance(cell, str) else f"{cell:,}" for c in cells for cell in c)
        )
    console.print(table)


def _list(counts: Counts) -> str:
    return f" ({', '.join(f'{num} {name}' for name, num in counts.items())})" if counts else ""


def _mark(num: int) -> str:
    return f"[red]{num:,}[/red]" if num else "0"


def _format_age(age_s: float) -> str:
    for unit, length_s in (("days", 86_400), ("h", 3600), ("min", 60)):
        if age_s >= 2 * length_s:
            return f"{age_s / length_s:.0f} {unit}"
    return f"{age_s:.1f} s"


def _when(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_s))


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
