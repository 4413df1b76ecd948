from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.choices import comparisons
from feedback.database import create_tables, open_database
from feedback.inbox import metadata as trainer_metadata


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    """The gateway's database, empty."""
    engine = open_database(f"sqlite:{tmp_path / 'gateway.db'}")
    create_tables(engine, comparisons.metadata)
    yield engine
    engine.dispose()


@pytest.fixture
def trainer_database(tmp_path: Path) -> Iterator[sa.Engine]:
    """The trainer's database, empty."""
    engine = open_database(f"sqlite:{tmp_path / 'trainer.db'}")
    create_tables(engine, trainer_metadata)
    yield engine
    engine.dispose()
