"""Brings a database to the schema that this code knows, by the revisions under migrations/.

Promises: all of it in one transaction under a lock, so that any number of processes may start at once and a crash
leaves the old schema; a database from before there were revisions is adopted with its rows. Never goes back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from feedback.database import Store, lock_schema, open_database, write_transaction
from feedback.errors import NewerSchema

_FOLDER = Path(__file__).parent / "migrations"


def migrate(database: sa.Engine, store: Store) -> list[str]:
    """Apply what is missing; return the revisions applied. Raises NewerSchema, and what the database raises."""
    applied: list[str] = []
    with write_transaction(database) as connection:
        lock_schema(connection)
        context = _open(connection, store, applied)
        _find_pending(context, store)
        with Operations.context(context):
            context.run_migrations()
    return applied


def migrate_url(url: str, store: Store) -> list[str]:
    """`migrate` for a database that is not open yet, and is closed again."""
    database = open_database(url)
    try:
        return migrate(database, store)
    finally:
        database.dispose()


def find_pending(database: sa.Engine, store: Store) -> list[str]:
    """The revisions that `migrate` would apply, oldest first; changes nothing. Raises NewerSchema."""
    with database.connect() as connection:
        return _find_pending(_open(connection, store, []), store)


def version_table(store: Store) -> str:
    """Where a database keeps the revision of a store."""
    return f"{store}_version"


def _open(connection: sa.Connection, store: Store, applied: list[str]) -> MigrationContext:
    script = _read_revisions(store)

    def plan(heads: Any, _: MigrationContext) -> Any:
        steps = script._upgrade_revs("head", heads)
        applied.extend(step.revision.revision for step in steps)
        return steps

    return MigrationContext.configure(connection, opts={"version_table": version_table(store), "fn": plan})


def _find_pending(context: MigrationContext, store: Store) -> list[str]:
    known = [each.revision for each in _read_revisions(store).walk_revisions()][::-1]
    stands_at = context.get_current_revision()
    if stands_at is not None and stands_at not in known:
        raise NewerSchema(store, stands_at, known[-1])
    return known if stands_at is None else known[known.index(stands_at) + 1 :]


def _read_revisions(store: Store) -> ScriptDirectory:
    return ScriptDirectory(str(_FOLDER), version_locations=[str(_FOLDER / store)])
