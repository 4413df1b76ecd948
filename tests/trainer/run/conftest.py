"""An empty inbox."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.database import write_transaction
from tests.trainer.stores import open_empty


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    with open_empty(f"sqlite:{tmp_path / 'trainer.db'}") as database, write_transaction(database) as opened:
        yield opened
