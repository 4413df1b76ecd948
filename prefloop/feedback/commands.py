"""`prefloop feedback`: shows what people said on its way to the trainer, rebuilds, exports and imports it.

Works on the log and the databases themselves, with no gateway or trainer running. What changes something says so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import Progress

from feedback import inbox
from feedback.choices import comparisons
from feedback.database import sqlite_path
from feedback.errors import ImportExportError
from feedback.events import Event
from feedback.import_export import ROWS, Kind, append_events, make_rows, read_event
from feedback.import_export.files import check_format, read_rows, write_rows
from feedback.import_export.foreign import Origin
from feedback.log import Record
from feedback.quality.satisfaction import load_opinions, measure_satisfaction
from feedback.quality.statistics import Statistics, count_gateway, count_log, count_trainer
from feedback.replay import is_open_elsewhere, replay
from feedback.scan import find_ends, find_last, find_starts, follow, scan
from prefloop.feedback import dead_letters, quarantine
from prefloop.feedback.sources import (
    GROUP,
    FromOffset,
    FromTime,
    LogOption,
    Sources,
    answers,
    check_database,
    is_there,
    one_start,
    opened_database,
    opened_log,
    opened_to_read,
    read_sources,
    read_time,
    require_folder,
)
from prefloop.feedback.view import describe_record, print_statistics, record_as_json
from prefloop.gateway_client import JsonOption, StateOption
from prefloop.terminal import console, fail

commands = typer.Typer(
    help="Look at what people said, rebuild, export and import it.", no_args_is_help=True, add_completion=False
)
commands.add_typer(dead_letters.commands, name="dead-letters")
commands.add_typer(quarantine.commands, name="quarantine")

MAX_SHOWN_PROBLEMS = 5


@commands.command("tail")
def tail_log(
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Begin with so many of the last events.")] = 10,
    from_offset: FromOffset = None,
    from_time: FromTime = "",
    follows: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for more, until Ctrl-C.")] = True,
    as_json: JsonOption = False,
    state_dir: StateOption = None,
    log_url: LogOption = "",
) -> None:
    """Show events as they arrive in the log, one a line."""
    sources = read_sources(state_dir, log_url)
    since_s = read_time(from_time, time.time())
    one_start(from_offset, since_s)
    with opened_log(sources) as log:
        ends = find_ends(log, sources.topic)
        if from_offset is None and since_s is None:
            shown = deque(scan(log, sources.topic, find_last(log, sources.topic, lines), ends), maxlen=lines)
            for record in shown:
                _show(record, as_json)
        else:
            starts = find_starts(log, sources.topic, offset=from_offset or 0, since_s=since_s)
            for record in scan(log, sources.topic, starts, ends):
                _show(record, as_json)
        if follows:
            with suppress(KeyboardInterrupt):  # how it is meant to end
                for record in follow(log, sources.topic, ends):
                    _show(record, as_json)


@commands.command("stats")
def show_statistics(as_json: JsonOption = False, state_dir: StateOption = None, log_url: LogOption = "") -> None:
    """Count what was said and where it is: outbox, log, lag, trainer, dead letters, gaps."""
    found = collect_statistics(read_sources(state_dir, log_url))
    if as_json:
        typer.echo(msgspec.json.encode(found))
    else:
        print_statistics(console, found)


@commands.command("replay")
def replay_log(
    into: Annotated[str, typer.Option(metavar="URL", help="The database to fill.", show_default="the trainer's")] = "",
    from_offset: FromOffset = None,
    from_time: FromTime = "",
    force: Annotated[bool, typer.Option("--force", help="Also while a trainer has the database open.")] = False,
    as_json: JsonOption = False,
    state_dir: StateOption = None,
    log_url: LogOption = "",
) -> None:
    """Rebuild the trainer's store from the log. Changes the database: adds what it lacks, removes nothing.

    Offsets move only over what was stored, so a trainer goes on behind the replay. What came of the choices (rounds,
    how often a choice was used) is not in the log and does not come back.
    """
    sources = read_sources(state_dir, log_url)
    url = into or sources.trainer_database
    since_s = read_time(from_time, time.time())
    one_start(from_offset, since_s)
    check_database(url)
    if not force:
        _require_no_trainer(sources, url)
    with opened_log(sources) as log, opened_database(url, "trainer", may_create=True) as database:
        starts = find_starts(log, sources.topic, offset=from_offset or 0, since_s=since_s)
        total = sum(end - starts.get(p, 0) for p, end in find_ends(log, sources.topic).items())
        with Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
            task = progress.add_task("replaying", total=total)
            done = replay(log, sources.topic, database, starts, lambda num: progress.update(task, completed=num))
    if as_json:
        typer.echo(msgspec.json.encode(done))
        return
    console.print(
        f"{done.num_records:,} records read: {done.num_preferences:,} choices, {done.num_signals:,} signals and"
        f" {done.num_dead_letters:,} dead letters that the store did not have.",
        highlight=False,
    )


@commands.command("export")
def export_feedback(
    path: Annotated[Path, typer.Argument(help="The file to write: NAME.jsonl or NAME.parquet.")],
    kind: Annotated[Kind, typer.Option(help="What to export.")] = "choices",
    has_all: Annotated[
        bool, typer.Option("--all", help="Also what TRL cannot train on: ties, both_bad, skips; bare signals.")
    ] = False,
    policy: Annotated[str, typer.Option(help="Only of this policy.", show_default=False)] = "",
    from_offset: FromOffset = None,
    from_time: FromTime = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    state_dir: StateOption = None,
    log_url: LogOption = "",
) -> None:
    """Write choices (or signals) of the log into a file as TRL reads it; importing it loses nothing."""
    check_format(path)
    if path.exists() and not force:
        raise fail(f"{path} is there already: pass --force to replace it.")
    require_folder(path)
    sources = read_sources(state_dir, log_url)
    since_s = read_time(from_time, time.time())
    one_start(from_offset, since_s)
    with opened_log(sources) as log:
        starts = find_starts(log, sources.topic, offset=from_offset or 0, since_s=since_s)
        records = scan(log, sources.topic, starts, find_ends(log, sources.topic))
        rows = make_rows(records, kind, has_all=has_all)
        chosen = (row for row in rows if not policy or row.policy == policy)
        num_rows = write_rows(path, ROWS[kind], chosen)
    typer.echo(f"{num_rows:,} {kind} written to {path}")


@commands.command("import")
def import_feedback(
    path: Annotated[
        Path,
        typer.Argument(
            help="An exported file, a preference dataset, or rows of messages and answer: .jsonl or .parquet."
        ),
    ],
    policy: Annotated[
        str, typer.Option(help="Whose choices these are, where the file does not say.", show_default="`policy`")
    ] = "",
    app: Annotated[str, typer.Option(help="Which app's, where the file does not say.")] = "import",
    skips_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and append nothing.")] = False,
    state_dir: StateOption = None,
    log_url: LogOption = "",
) -> None:
    """Append a file's choices, signals or demonstrations to the log. Ids are kept or follow from the row: twice adds nothing."""
    sources = read_sources(state_dir, log_url)
    origin = Origin(policy or sources.policy, app, time.time())
    num_rows, problems = check_file(path, origin)
    for problem in problems[:MAX_SHOWN_PROBLEMS]:
        console.print(f"[yellow]{path.name}[/yellow] ", end="")
        console.print(problem, markup=False, highlight=False)
    if problems and not skips_bad:
        raise fail(f"{len(problems):,} of {num_rows:,} rows cannot be read; nothing was imported (--skip-bad).")
    if dry_run:
        typer.echo(f"{num_rows - len(problems):,} of {num_rows:,} rows can be imported")
        return
    if sources.log.startswith("sqlite"):
        require_folder(sqlite_path(sources.log))
    with opened_log(sources, may_create=True) as log:
        num_events = append_events(log, sources.topic, good_events(path, origin))
    typer.echo(f"{num_events:,} events appended to {sources.topic}")


def collect_statistics(sources: Sources) -> Statistics:
    """What there is of gateway, log and trainer."""
    with opened_to_read(sources.trainer_database, inbox.preferences) as connection:
        trainer = None if connection is None else count_trainer(connection, sources.topic)
        stored = None if connection is None else inbox.load_offsets(connection, sources.topic)
        opinions = [] if connection is None else load_opinions(connection, sources.policy)
    with opened_to_read(sources.gateway_database, comparisons) as connection:
        gateway = None if connection is None else count_gateway(connection, time.time())
    partitions = None
    if is_there(sources.log):
        with opened_log(sources) as log:
            partitions = count_log(log, sources.topic, GROUP, stored)
    lag = None if partitions is None else sum(row.lag for row in partitions)
    return Statistics(
        topic=sources.topic,
        gateway=gateway,
        log=partitions,
        lag=lag,
        trainer=trainer,
        satisfaction=measure_satisfaction(opinions),
    )


def check_file(path: Path, origin: Origin) -> tuple[int, list[str]]:
    """How many rows a file has, and what is wrong with which, before anything is appended."""
    problems = []
    num_rows = 0
    for place, columns in read_rows(path):
        num_rows += 1
        try:
            read_event(columns, origin)
        except ImportExportError as error:
            problems.append(f"{place}: {error}")
    return num_rows, problems


def good_events(path: Path, origin: Origin) -> Iterator[Event]:
    """The events of the rows that can be read."""
    for _, columns in read_rows(path):
        with suppress(ImportExportError):
            yield read_event(columns, origin)


def _show(record: Record, as_json: bool) -> None:
    if as_json:
        typer.echo(record_as_json(record))
    else:
        console.print(describe_record(record), soft_wrap=True)


def _require_no_trainer(sources: Sources, url: str) -> None:
    """A store has one writer: leaves with its own words if a trainer is at work on this one."""
    if is_open_elsewhere(url):
        raise fail(f"Another process has {url} open: stop the trainer first, or pass --force.")
    is_trainers = url == sources.trainer_database and not url.startswith("sqlite")
    if is_trainers and answers(sources.trainer.host, sources.trainer.port):
        where = f"{sources.trainer.host}:{sources.trainer.port}"
        raise fail(f"A trainer answers at {where}: stop it first, or pass --force.")
