"""Brings the databases of gateway and trainer to this release's schema, as a step of its own such as a Kubernetes Job.

Gateway and trainer do the same at their start. SQLite files that are not there yet are left to it.
"""

from collections.abc import Iterator
from typing import get_args

from sqlalchemy.exc import SQLAlchemyError

from feedback.database import Store, locate_store, open_database, sqlite_path
from feedback.errors import FeedbackError
from feedback.schema import find_pending, migrate
from prefloop.feedback.sources import Sources, read_sources
from prefloop.terminal import CommandFailed


class MigrationFailed(CommandFailed):
    """A database could not be read or changed; the message says which, and why."""


def migrate_databases(*, is_check: bool) -> Iterator[tuple[Store, list[str]]]:
    """Apply what is missing, or with `is_check` only find it: each store with its revisions. Raises MigrationFailed."""
    for store, url in list_stores(read_sources()):
        database = open_database(url)
        try:
            revisions = find_pending(database, store) if is_check else migrate(database, store)
        except (FeedbackError, SQLAlchemyError) as error:
            raise MigrationFailed(f"{store}: {error}") from error
        finally:
            database.dispose()
        yield store, revisions


def list_stores(settings: Sources) -> Iterator[tuple[Store, str]]:
    """Every store whose database is there, with its URL."""
    for store in get_args(Store):
        section = settings.trainer if store == "trainer" else settings.gateway
        url = locate_store(store, settings.state_dir, section.database_url)
        if not url.startswith("sqlite") or sqlite_path(url).exists():
            yield store, url
