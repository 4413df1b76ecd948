"""What was shown is stored before, and what was not shown is not left behind, however late its row commits."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import wait_until

from feedback.choices import comparisons
from feedback.database import Writer, create_tables, metadata, open_database
from feedback.duels import load_duels
from feedback.events import Arm, Candidate, Comparison
from gateway.serving.recording import comparison_recorder
from gateway.serving.recording.comparison_recorder import ComparisonRecorder


class Database:
    """A database whose writer can be stopped, before it takes a job or inside of a transaction."""

    def __init__(self, path: Path) -> None:
        self.engine = open_database(f"sqlite:{path}")
        create_tables(self.engine, metadata)
        self.writer = Writer(self.engine)
        self.recorder = ComparisonRecorder(self.writer)

    def hold_writer(self) -> threading.Event:
        """Keep the writer busy until the event is set."""
        released = threading.Event()
        self.writer.run(lambda _: released.wait(10))
        return released

    def hold_commits(self) -> threading.Event:
        """Let every transaction wait before it commits, until the event is set."""
        released = threading.Event()
        sa.event.listen(self.engine, "commit", lambda _: released.wait(10))
        return released

    def ids(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(comparisons.c.id)).scalars())

    def count_duels(self) -> int:
        with self.engine.connect() as connection:
            return len(list(load_duels(connection, ["r-1"])))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "gateway.db")
    yield database
    database.writer.close()
    database.engine.dispose()


def make_duel(name: str) -> Comparison:
    def candidate(arm: Arm) -> Candidate:
        return Candidate(
            completion_id=f"{name}-{arm}", text=arm, checkpoint=arm, digest="", arm=arm,
            finish_reason="stop", prompt_tokens=1, completion_tokens=1,
        )  # fmt: skip

    return Comparison(
        id=name, policy="p", app="a", user="ann", conversation="c", messages=[], first=candidate("stable"),
        second=candidate("canary"), asked="duel", propensity=1.0, engine="e", rollout="r-1", created_at=1.0, expires_at=9.0,
    )  # fmt: skip


async def settle(database: Database) -> None:
    await wait_until(lambda: database.recorder.num_pending == 0)
    for _ in range(3):  # what a callback queues is queued before the next round
        await database.writer.arun(lambda _: None)
        await asyncio.sleep(0.01)


async def test_a_row_in_time_stays(database: Database) -> None:
    assert await database.recorder.record(make_duel("c"), 5.0, {})
    await settle(database)
    assert (database.ids(), database.count_duels()) == (["c"], 1)


async def test_a_row_that_no_transaction_has_taken_yet_is_never_stored(database: Database) -> None:
    released = database.hold_writer()
    assert not await database.recorder.record(make_duel("c"), 0.02, {})
    released.set()
    await settle(database)
    assert database.ids() == []


async def test_a_row_that_commits_late_is_no_duel(database: Database) -> None:
    released = database.hold_commits()
    assert not await database.recorder.record(make_duel("c"), 0.05, {})
    released.set()
    await settle(database)
    assert (database.ids(), database.count_duels()) == ([], 0)


async def test_a_row_whose_client_leaves_while_it_commits_is_no_duel(database: Database) -> None:
    released = database.hold_commits()
    recording = asyncio.create_task(database.recorder.record(make_duel("c"), 5.0, {}))
    await asyncio.sleep(0.05)
    recording.cancel()
    await asyncio.gather(recording, return_exceptions=True)
    released.set()
    await settle(database)
    assert (database.ids(), database.count_duels()) == ([], 0)


async def test_a_late_row_is_taken_out_as_soon_as_the_database_lets_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_recorder, "_RETRY_S", 0.02)
    delete, num_failures = comparison_recorder.delete_comparisons, 0

    def fail_twice(connection: sa.Connection, ids: frozenset[str]) -> None:
        nonlocal num_failures
        num_failures += 1
        if num_failures < 3:
            raise OSError("no space left")
        delete(connection, ids)

    monkeypatch.setattr(comparison_recorder, "delete_comparisons", fail_twice)
    released = database.hold_commits()
    results = await asyncio.gather(*(database.recorder.record(make_duel(name), 0.05, {}) for name in "ab"))
    assert results == [False, False]
    released.set()
    await wait_until(lambda: num_failures >= 3 and not database.ids())
    assert await database.recorder.record(make_duel("c"), 5.0, {})
    assert database.ids() == ["c"]
