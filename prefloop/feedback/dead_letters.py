"""`prefloop feedback dead-letters`: the records that the trainer could not read, shown, tried again, set aside.

A letter is named by its place, PARTITION:OFFSET, as the list shows it.
"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import sqlalchemy as sa
import typer

from feedback.database import write_transaction
from feedback.dead_letters import (
    DeadLetter,
    discard_dead_letters,
    find_dead_letter,
    load_dead_letters,
    retry_dead_letters,
)
from prefloop.feedback.sources import opened_database, read_sources
from prefloop.feedback.view import letter_as_dict, print_letter, print_letters, quote
from prefloop.gateway_client import JsonOption, StateOption
from prefloop.terminal import console, fail

commands = typer.Typer(help="Show, retry and discard records that could not be read.", no_args_is_help=True)

Place = Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="The letter's place, as `list` shows it.")]
Places = Annotated[
    list[str] | None, typer.Argument(metavar="[PARTITION:OFFSET]...", help="The letters' places, as `list` shows them.")
]


@commands.command("list")
def list_letters(
    with_discarded: Annotated[bool, typer.Option("--all", help="Also those that were discarded.")] = False,
    as_json: JsonOption = False,
    state_dir: StateOption = None,
) -> None:
    """List the dead letters in the order of the log."""
    sources = read_sources(state_dir)
    with opened_database(sources.trainer_database, "trainer") as database, database.connect() as connection:
        letters = load_dead_letters(connection, with_discarded=with_discarded)
    if as_json:
        for letter in letters:
            typer.echo(msgspec.json.encode(letter_as_dict(letter)))
    elif letters:
        print_letters(console, letters)
    else:
        console.print("No dead letters.")


@commands.command("show")
def show_letter(place: Place, as_json: JsonOption = False, state_dir: StateOption = None) -> None:
    """Show one letter: why it could not be read, its headers, its bytes."""
    sources = read_sources(state_dir)
    with opened_database(sources.trainer_database, "trainer") as database, database.connect() as connection:
        [letter] = _find(connection, sources.topic, [place])
    if as_json:
        typer.echo(msgspec.json.encode(letter_as_dict(letter)))
    else:
        print_letter(console, letter)


@commands.command("retry")
def retry(places: Places = None, as_json: JsonOption = False, state_dir: StateOption = None) -> None:
    """Read letters again, as after an upgrade: all that wait, or those named. Stores what can be read now.

    Each letter leaves the dead letters in the transaction that stores what it says.
    """
    sources = read_sources(state_dir)
    with (
        opened_database(sources.trainer_database, "trainer") as database,
        write_transaction(database) as connection,
    ):
        letters = _find(connection, sources.topic, places) if places else load_dead_letters(connection)
        done = retry_dead_letters(connection, letters)
    num_stored = sum(not one.problem for one in done)
    if as_json:
        typer.echo(msgspec.json.encode({"stored": num_stored, "unreadable": len(done) - num_stored}))
        return
    console.print(f"{num_stored:,} stored, {len(done) - num_stored:,} still cannot be read")
    for one in done:
        if one.problem:
            where = f"  {one.letter.record.partition}:{one.letter.record.offset}  {quote(one.problem, 200)[1:-1]}"
            console.print(where, markup=False, highlight=False)


@commands.command("discard")
def discard(
    places: Annotated[
        list[str], typer.Argument(metavar="PARTITION:OFFSET...", help="The letters' places, as `list` shows them.")
    ],
    reason: Annotated[str, typer.Option(help="Why they need no other try; kept with them.")],
    as_json: JsonOption = False,
    state_dir: StateOption = None,
) -> None:
    """Set letters aside, with a reason. They are marked and kept: `list --all` shows them, `retry PLACE` takes them."""
    if not reason.strip():
        raise fail("Say why with --reason: it is kept with them.")
    sources = read_sources(state_dir)
    with (
        opened_database(sources.trainer_database, "trainer") as database,
        write_transaction(database) as connection,
    ):
        num = discard_dead_letters(connection, _find(connection, sources.topic, places), reason, time.time())
    typer.echo(msgspec.json.encode({"discarded": num}) if as_json else f"{num:,} discarded")


def _find(connection: sa.Connection, topic: str, places: list[str]) -> list[DeadLetter]:
    """The letters of these places. Leaves with its own words at one that is none."""
    letters = []
    for place in dict.fromkeys(places):
        partition, _, offset = place.partition(":")
        if not (partition.isdecimal() and offset.isdecimal()):
            raise fail(f"{place} is no place: write PARTITION:OFFSET, such as 2:17.")
        letter = find_dead_letter(connection, topic, int(partition), int(offset))
        if letter is None:
            raise fail(f"There is no dead letter at {place}.")
        letters.append(letter)
    return letters
