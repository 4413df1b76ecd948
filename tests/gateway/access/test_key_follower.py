import asyncio
from typing import Any

import pytest

from gateway.access.key_follower import KeyFollower
from gateway.access.key_ring import KeyRing

NEW = b"Bearer pl_0123456789ab_secret"


class Table:
    """Stands for the ring's reading of the database: counts them, and may take its time or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_read, self.error = 0, None
        self.ring = KeyRing(b"pepper")
        monkeypatch.setattr(self.ring, "refresh", self._refresh)

    def _refresh(self, database: Any) -> None:
        self.num_read += 1
        if self.error is not None:
            raise self.error


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(monkeypatch)


def follow(table: Table, clock: Clock) -> KeyFollower:
    database: Any = None
    return KeyFollower(table.ring, database, clock)


async def test_unknown_keys_cost_one_reading_a_second_however_many_they_are(table: Table) -> None:
    clock = Clock()
    follower = follow(table, clock)
    clock.now += 1
    assert follower.may_find(NEW)
    await asyncio.gather(*(follower.look() for _ in range(50)))
    assert table.num_read == 1
    await follower.look()
    assert table.num_read == 1 and not follower.may_find(NEW)
    clock.now += 1
    await follower.look()
    assert table.num_read == 2


async def test_what_is_no_key_of_ours_reads_nothing(table: Table) -> None:
    clock = Clock()
    follower = follow(table, clock)
    clock.now += 1
    for header in (b"", b"Bearer", b"Bearer sk-123", b"Basic cGw6", b"Bearer pl__x", b"Bearer pl_x_", b"\xff\xfe pl"):
        assert not follower.may_find(header), header


async def test_a_database_that_is_away_refuses_the_key_and_breaks_nothing(table: Table) -> None:
    clock = Clock()
    follower = follow(table, clock)
    table.error = OSError("away")
    clock.now += 1
    await follower.look()
    assert table.num_read == 1
    table.error = None
    clock.now += 1
    assert follower.may_find(NEW)
    await follower.look()
    assert table.num_read == 2


async def test_who_stops_waiting_does_not_end_the_others_reading(table: Table) -> None:
    clock = Clock()
    follower = follow(table, clock)
    clock.now += 1
    leaving, staying = asyncio.create_task(follower.look()), asyncio.create_task(follower.look())
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    assert table.num_read == 1
