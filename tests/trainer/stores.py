"""The logs and databases that the trainer's tests run over: each embedded, and each a real service."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.database import create_tables, open_database

PAIRS = [
    pytest.param(pair, id="-".join(pair)) for pair in itertools.product(["sqlite", "kafka"], ["sqlite", "postgresql"])
]


def find_log(kind: str, request: pytest.FixtureRequest, directory: Path) -> str:
    """The URL of a log of this kind."""
    return f"sqlite:{directory / 'log.db'}" if kind == "sqlite" else request.getfixturevalue("kafka_url")


def find_database(kind: str, request: pytest.FixtureRequest, directory: Path) -> str:
    """The URL of a database of this kind."""
    return f"sqlite:{directory / 'trainer.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")


@contextmanager
def open_empty(url: str) -> Iterator[sa.Engine]:
    """The trainer's database with its tables, all empty."""
    engine = open_database(url)
    inbox.metadata.drop_all(engine)
    create_tables(engine, inbox.metadata)
    yield engine
    engine.dispose()
