"""`prefloop feedback quarantine`: the preferences that learning could not use, shown and tried again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from feedback import quarantine
from feedback.database import write_transaction
from prefloop.feedback.sources import opened_database, read_sources
from prefloop.feedback.view import quote
from prefloop.gateway_client import JsonOption, StateOption
from prefloop.terminal import console, fail

commands = typer.Typer(help="Show and retry preferences that learning could not use.", no_args_is_help=True)

Events = Annotated[
    list[str] | None, typer.Argument(metavar="[EVENT]...", help="The events' ids, as `list` shows them.")
]


@commands.command("list")
def list_quarantined(as_json: JsonOption = False, state_dir: StateOption = None) -> None:
    """List what is in quarantine, in the order of arrival: where in learning it failed, and why."""
    sources = read_sources(state_dir)
    with opened_database(sources.trainer_database, "trainer") as database, database.connect() as connection:
        found = quarantine.load(connection)
    if as_json:
        for each in found:
            typer.echo(msgspec.json.encode(each))
        return
    if not found:
        console.print("Nothing is in quarantine.")
        return
    table = Table("event", "app", "part", "error", "since")
    for each in found:
        since = datetime.fromtimestamp(each.quarantined_at).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            Text(quote(each.event_id, 40)[1:-1]), Text(quote(each.app, 24)[1:-1]), each.part,
            Text(quote(each.error, 120)[1:-1]), since,
        )  # fmt: skip
    console.print(table)


@commands.command("retry")
def retry(events: Events = None, as_json: JsonOption = False, state_dir: StateOption = None) -> None:
    """Have the trainer try preferences again, all or those named. What fails again comes back."""
    sources = read_sources(state_dir)
    with (
        opened_database(sources.trainer_database, "trainer") as database,
        write_transaction(database) as connection,
    ):
        known = {each.event_id for each in quarantine.load(connection)}
        for event_id in events or ():
            if event_id not in known:
                raise fail(f"There is no event {quote(event_id)} in quarantine.")
        num = quarantine.release(connection, events or None)
    if as_json:
        typer.echo(msgspec.json.encode({"released": num}))
    else:
        console.print(f"{num:,} released; the trainer tries them at its next update")
