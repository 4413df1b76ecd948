"""What commands print: results on stdout, and one red line on stderr when they fail.

`plain` is for text that others wrote (names, reasons, answers): it is never read as markup. `console` is for our own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from feedback.errors import FeedbackError

console = Console()
plain = Console(markup=False, highlight=False)


def fail(message: str) -> typer.Exit:
    """Print why a command cannot go on; raise what is returned."""
    Console(stderr=True).print(Text(message, style="red"), soft_wrap=True)
    return typer.Exit(1)


@contextmanager
def speak_plainly() -> Iterator[None]:
    """End a command with one sentence, where a file, a setting or a database is not as it must be."""
    try:
        yield
    except FeedbackError as error:
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


def format_time(epoch_s: float | None) -> str:
    """Local time; "" for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_s)) if epoch_s else ""
