"""What commands print: results on stdout, and one red line on stderr when they fail.

`plain` is for text that others wrote (names, reasons, answers): it is never read as markup. `console` is for our own,
`aside` for what is said beside a result, on stderr. Exit statuses: 0 it was done, 1 it was not (one red line says why), 2 the
arguments are wrong.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feedback.errors import FeedbackError

console = Console()
plain = Console(markup=False, highlight=False)
aside = Console(markup=False, highlight=False, stderr=True)


class CommandFailed(Exception):
    """A command cannot go on; the message says why and what to do."""


def fail(message: str) -> typer.Exit:
    """Print why a command cannot go on; raise what is returned."""
    Console(stderr=True).print(Text(message, style="red"), soft_wrap=True)
    return typer.Exit(1)


@contextmanager
def speak_plainly() -> Iterator[None]:
    """End a command with one sentence, where a file, a setting or a database is not as it must be."""
    try:
        yield
    except (CommandFailed, FeedbackError) as error:
        raise fail(str(error)) from None
    except BrokenPipeError:  # such as `| head`: no fault, and click knows what to do
        raise
    except OSError as error:
        raise fail(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    except Exception as error:
        sqlalchemy = sys.modules.get("sqlalchemy.exc")  # loaded only by commands that open a database
        if sqlalchemy is None or not isinstance(error, sqlalchemy.SQLAlchemyError):
            raise
        raise fail(f"The database refuses: {getattr(error, 'orig', None) or error}") from None


def read_answer(question: str) -> str:
    """What a person types, "" where nobody is. Asks on stderr, so that stdout holds the result alone."""
    aside.print(question, end=" ", soft_wrap=True)
    said = sys.stdin.readline()
    if not said.endswith("\n"):  # the end of the input, not an empty line
        aside.print()
    return said.strip()


def format_time(epoch_s: float | None) -> str:
    """Local time; "" for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_s)) if epoch_s else ""


def format_day(epoch_s: float | None) -> str:
    """Its day in local time; "" for none."""
    return format_time(epoch_s)[:10]


def format_evidence(e: float, threshold: float) -> str:
    """`7.3 of 20`; an e-value may have three hundred digits."""
    return f"{e:.1f} of {threshold:.0f}" if e < 10_000 else f"{e:.0e} of {threshold:.0f}"


def make_table(*columns: str, whole: Collection[str] = ()) -> Table:
    """A table that is never cut: the columns of `whole` (ids, times) keep to their line, the others fold.

    What is in `whole` must fit into 80 columns together.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name in whole, overflow="fold")
    return table


def print_json(document: Any) -> None:
    """One JSON document on stdout: bytes are JSON already."""
    encoded = document if isinstance(document, bytes) else msgspec.json.encode(document)
    typer.echo(msgspec.json.format(encoded, indent=2))
