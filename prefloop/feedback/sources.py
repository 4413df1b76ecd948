"""What offline commands read and write: the settings they share with gateway and trainer, the log and the databases.

Opens only what is there already, unless told to make it, and never makes a directory.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from pydantic import BaseModel, Field
from sqlalchemy.exc import ArgumentError

from feedback.database import locate_store, open_database, sqlite_path
from feedback.log import Log
from feedback.schema import migrate
from feedback.settings import DatabaseUrl, SharedSettings
from prefloop.durations import parse_duration
from prefloop.terminal import fail

GROUP = "trainer"  # under which the trainer publishes how far it has read

LogOption = Annotated[
    str,
    typer.Option("--log", metavar="URL", help="The log.", show_default="as prefloop.toml says, else in --state-dir"),
]
FromOffset = Annotated[
    int | None, typer.Option("--from-offset", min=0, help="Begin at this offset of every partition.", metavar="N")
]
FromTime = Annotated[
    str,
    typer.Option(
        "--from-time",
        metavar="TIME",
        help="Begin with what was appended then: ISO 8601, or so long ago, such as 90s, 15m, 2h, 7d.",
        show_default=False,
    ),
]


class GatewaySection(BaseModel):
    """What these commands need of the gateway's settings."""

    database_url: DatabaseUrl = ""


class TrainerSection(BaseModel):
    """What these commands need of the trainer's settings."""

    database_url: DatabaseUrl = ""
    host: str = "127.0.0.1"
    port: int = 8802


class Sources(SharedSettings):
    """The same settings as gateway and trainer read."""

    gateway: GatewaySection = Field(default_factory=GatewaySection)
    trainer: TrainerSection = Field(default_factory=TrainerSection)

    @property
    def gateway_database(self) -> str:
        """The URL of the gateway's database."""
        return locate_store("gateway", self.state_dir, self.gateway.database_url)

    @property
    def trainer_database(self) -> str:
        """The URL of the trainer's database."""
        return locate_store("trainer", self.state_dir, self.trainer.database_url)


def read_sources(state_dir: Path | None = None, log: str = "") -> Sources:
    """The settings; what was given on the command line wins."""
    given: dict[str, Any] = {}
    if state_dir is not None:
        given["state_dir"] = state_dir
    if log:
        given["log_url"] = log
    return Sources(**given)


@contextmanager
def opened_log(sources: Sources, *, may_create: bool = False) -> Iterator[Log]:
    """The log, closed at the end. Leaves with its own words if there is none."""
    if not may_create and not is_there(sources.log):
        raise fail(f"There is no log at {sources.log}: pass --state-dir or --log, or start the gateway first.")
    log = sources.open_log()
    try:
        yield log
    finally:
        log.close()


@contextmanager
def opened_database(url: str, whose: str, *, may_create: bool = False) -> Iterator[sa.Engine]:
    """A database to write to, with the trainer's tables. Leaves with its own words if there is none."""
    if not may_create and not is_there(url):
        raise fail(f"There is no {whose}'s database at {url}: pass --state-dir, or set its URL in prefloop.toml.")
    if url.startswith("sqlite"):
        require_folder(sqlite_path(url))
    engine = open_database(url)
    try:
        migrate(engine, "trainer")
        yield engine
    finally:
        engine.dispose()


@contextmanager
def opened_to_read(url: str, table: sa.Table) -> Iterator[sa.Connection | None]:
    """A connection that cannot write; None if there is no such database, or nothing in it yet."""
    if not is_there(url):
        yield None
        return
    engine = open_database(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only=ON")
            else:
                connection = connection.execution_options(postgresql_readonly=True)
            yield connection if sa.inspect(connection).has_table(table.name) else None
    finally:
        engine.dispose()


def check_database(url: str) -> None:
    """Leaves with its own words unless this is the URL of a database that could be opened."""
    try:
        if url.startswith("sqlite"):
            sqlite_path(url)
        elif sa.make_url(url).get_backend_name() != "postgresql":
            raise ValueError("it must begin with sqlite: or postgresql://")
    except (ValueError, ArgumentError) as error:
        raise fail(f"This is no URL of a database: {error}.") from None


def require_folder(path: Path) -> None:
    """Leaves with its own words if a file's directory is not there: a typo would make a new one."""
    if not path.absolute().parent.is_dir():
        raise fail(f"There is no directory {path.parent}: make it first.")


def is_there(url: str) -> bool:
    """Whether a SQLite file exists; of services, only asking can tell."""
    return not url.startswith("sqlite") or sqlite_path(url).exists()


def answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def read_time(text: str, now: float) -> float | None:
    """Epoch seconds of a time or of so long ago; None for "". Leaves with its own words at what is neither."""
    if not text:
        return None
    if (ago_s := parse_duration(text)) is not None:
        return now - ago_s
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise fail(f"{text!r} is no time: write 2026-01-31T12:00, or so long ago, such as 2h.") from None


def one_start(offset: int | None, since: float | None) -> None:
    """Leaves with its own words if both ways to say where to begin were used."""
    if offset is not None and since is not None:
        raise fail("Say --from-offset or --from-time, not both.")
