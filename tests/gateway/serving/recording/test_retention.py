from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry

from feedback.choices import comparisons, is_remembered, store_comparison
from feedback.database import Writer, open_database, write_transaction
from feedback.schema import migrate
from gateway.serving.recording.retention import Retention
from tests.feedback.samples import make_comparison

DAY_S = 86_400.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    """250 comparisons, each a day younger than the one before."""
    database = open_database(f"sqlite:{tmp_path / 'gateway.db'}")
    migrate(database, "gateway")
    with write_transaction(database) as connection:
        for number in range(250):
            store_comparison(connection, make_comparison(id=f"cmp-{number:03d}", expires_at=number * DAY_S + 1))
    yield database
    database.dispose()


def count_remembered(database: sa.Engine) -> int:
    with database.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).where(is_remembered).select_from(comparisons)).scalar_one()


async def test_a_leader_forgets_all_that_is_old_enough(database: sa.Engine) -> None:
    writer, leader = Writer(database), SimpleNamespace(fence=1)
    membership: Any = leader
    retention = Retention(writer, membership, 30.0, CollectorRegistry(), clock=lambda: 250 * DAY_S)
    assert await retention.forget_old() == 220  # more than a batch
    assert count_remembered(database) == 30
    assert await retention.forget_old() == 0
    writer.close()


async def test_a_gateway_that_does_not_lead_forgets_nothing(database: sa.Engine) -> None:
    writer = Writer(database)
    membership: Any = SimpleNamespace(fence=None)
    retention = Retention(writer, membership, 1.0, CollectorRegistry(), clock=lambda: 250 * DAY_S)
    assert await retention.forget_old() == 0
    assert count_remembered(database) == 250
    writer.close()
