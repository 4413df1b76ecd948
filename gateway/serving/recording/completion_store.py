"""The table of recorded answers: written many at once, found by app and id, the oldest deleted first.

Best effort, by design: SQLite's synchronous=NORMAL may lose the last batches at power loss (never the file), so that
acknowledged choices do not wait for this. Completion ids are the engine's and may repeat: an app's newest one counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import sqlalchemy as sa

from feedback.database import open_database
from feedback.errors import DatabaseError
from feedback.schema import migrate

metadata = sa.MetaData()
"""Apart from the gateway's other tables: with SQLite this one lies in a file of its own."""

completions = sa.Table(
    "completions",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("conversation", sa.Text, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("checkpoint", sa.Text, nullable=False),
    sa.Column("arm", sa.Text, nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("response", sa.LargeBinary, nullable=False),
    sa.Column("is_stream", sa.Boolean, nullable=False),
    # Ids are random: led by the run of its row, an entry falls into pages that are in memory, however large the table.
    sa.Index("completions_by_id", sa.text("(number >> 14)"), "id"),
)

Row = tuple[float, str, str, str, str, str, str, str, bytes, bytes, bool]
"""One answer: the fields of StoredCompletion in their order."""

MAX_DELETED = 500  # rows in one step
_STATEMENT_ROWS = 64
_STATEMENT_BYTES = 250_000
_SQLITE = (
    "PRAGMA synchronous=NORMAL",
    "PRAGMA cache_size=-16384",  # KiB
    "PRAGMA wal_autocheckpoint=8192",  # pages, 32 MiB: fewer fsyncs beside those of the choices
)
_POSTGRES = ("SET statement_timeout = 0",)  # measuring a large table takes minutes, and nobody waits for it
_OLDEST = f"(SELECT number, created_at FROM completions ORDER BY number LIMIT {MAX_DELETED}) AS oldest"
_ENDS = "SELECT (SELECT min(number) FROM completions), (SELECT max(number) FROM completions)"
_SQLITE_SIZE = (
    "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)
_OTHER_SIZE = "SELECT sum(octet_length(request) + octet_length(response)) FROM completions"


@dataclass(frozen=True)
class StoredCompletion:
    """One answer: `request` as it was received, `response` as the engine sent it, a stream's events in one piece."""

    created_at: float
    id: str
    app: str
    user: str
    conversation: str
    policy: str
    checkpoint: str
    arm: str
    request: bytes
    response: bytes
    is_stream: bool


_NAMES = [field.name for field in fields(StoredCompletion)]
_COLUMNS = ", ".join(f'"{name}"' for name in _NAMES)


class CompletionStore:
    """One database: SQLite, or PostgreSQL by psycopg. `find` is for any thread, everything else for one.

    Raises what the database's driver raises.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_sqlite = url.startswith("sqlite")
        self._engine: sa.Engine | None = None
        self._connection: Any = None  # the one that writes, as its driver made it

    @property
    def is_shared(self) -> bool:
        """Whether other processes may write to it too."""
        return not self._is_sqlite

    @property
    def is_open(self) -> bool:
        """Whether answers can be looked for."""
        return self._engine is not None

    def open(self) -> None:
        """Connect, and create what is missing. Does nothing if it is open."""
        if self._engine is None:
            engine = open_database(self._url)
            migrate(engine, "completions")
            self._engine = engine
        if self._connection is None:
            connection = self._engine.raw_connection()
            for statement in _SQLITE if self._is_sqlite else _POSTGRES:
                connection.cursor().execute(statement)
            connection.commit()
            self._connection = connection

    def reset(self) -> None:
        """Give up the connection after a failure; `open` makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it is broken already
                connection.invalidate()

    def close(self) -> None:
        """Give everything back."""
        self.reset()
        if self._engine is not None:
            self._engine.dispose()

    def insert(self, rows: Iterable[Row]) -> int:
        """Store all rows in one transaction, or none; return how many."""
        cursor = self._begin()
        num_rows = _insert_many(cursor, rows) if self._is_sqlite else _copy(cursor, rows)
        self._connection.commit()
        return num_rows

    def find(self, app: str, completion_id: str) -> StoredCompletion | None:
        """The app's newest answer with this id. Raises DatabaseError while the store is not open."""
        if self._engine is None:
            raise DatabaseError("the recorded completions are not open")
        with self._engine.connect() as connection:
            first, last = connection.execute(sa.text(_ENDS)).one()
            if first is None:
                return None
            runs = ", ".join(map(str, range(first >> 14, (last >> 14) + 1)))  # 100 for 1.6 million rows
            query = sa.select(*(completions.c[name] for name in _NAMES)).where(
                sa.text(f"(number >> 14) IN ({runs})"), completions.c.id == completion_id, completions.c.app == app
            )
            row = connection.execute(query.order_by(completions.c.number.desc()).limit(1)).mappings().first()
        return None if row is None else StoredCompletion(**row)

    def count_excess(self, max_bytes: float) -> int:
        """About how many rows must go so that the rest takes no more than `max_bytes`."""
        cursor = self._connection.cursor()
        cursor.execute(_ENDS)
        first, last = cursor.fetchone()
        if first is None:
            return 0
        cursor.execute(_SQLITE_SIZE if self._is_sqlite else _OTHER_SIZE)
        num_bytes = float(cursor.fetchone()[0] or 0)
        self._connection.rollback()  # ends what psycopg began in order to read
        num_rows = last - first + 1
        return max(0, round(num_rows * (1 - max_bytes / num_bytes))) if num_bytes > max_bytes else 0

    def delete_oldest(self, num_rows: int, made_before: float) -> int:
        """Delete the `num_rows` oldest and those made before a time, MAX_DELETED at most; return how many."""
        cursor = self._begin()
        cursor.execute(
            f"SELECT min(number), max(CASE WHEN created_at < {made_before!r} THEN number END) FROM {_OLDEST}"
        )
        first, last = cursor.fetchone()
        num_deleted = 0
        if first is not None:
            end = max(first + min(num_rows, MAX_DELETED), 0 if last is None else last + 1)
            cursor.execute(f"DELETE FROM completions WHERE number < {end}")
            num_deleted = cursor.rowcount
        self._connection.commit()
        return num_deleted

    def _begin(self) -> Any:
        """A cursor in a transaction; psycopg begins its own."""
        cursor = self._connection.cursor()
        if self._is_sqlite:
            cursor.execute("BEGIN IMMEDIATE")
        return cursor


@cache
def _insert_statement(num_rows: int) -> str:
    row = "(" + ", ".join("?" * len(_NAMES)) + ")"
    return f"INSERT INTO completions ({_COLUMNS}) VALUES {', '.join([row] * num_rows)}"


def _insert_many(cursor: Any, rows: Iterable[Row]) -> int:
    """Many rows a statement: the driver takes the interpreter's lock several times for each, and each time waits for it.

    Not more: it copies their bodies in one go that no other thread interrupts, 3 ms for 1 MB.

    Blobs go as bytearrays and flags as integers, which it takes as they are; for bytes and bool it looks for an
    adapter, a microsecond each.
    """
    left = list(rows)
    num_rows = len(left)
    while left:
        chunk = left[:_STATEMENT_ROWS]
        while len(chunk) > 1 and sum(len(row[8]) + len(row[9]) for row in chunk) > _STATEMENT_BYTES:
            chunk = chunk[: len(chunk) // 2]
        left = left[len(chunk) :]
        values: list[Any] = []
        for row in chunk:
            values += row[:8]
            values += (bytearray(row[8]), bytearray(row[9]), int(row[10]))
        cursor.execute(_insert_statement(len(chunk)), values)
    return num_rows


def _copy(cursor: Any, rows: Iterable[Row]) -> int:
    """psycopg's COPY: a tenth of the processor time of its INSERTs."""
    num_rows = 0
    with cursor.copy(f"COPY completions ({_COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["float8", *["text"] * 7, "bytea", "bytea", "bool"])
        for row in rows:
            copy.write_row(row)
            num_rows += 1
    return num_rows
