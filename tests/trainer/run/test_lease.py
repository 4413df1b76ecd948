"""The lease on a real PostgreSQL: one holder at a time, and a trainer that slept past its lease writes nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.database import Writer, create_tables, open_database
from feedback.manifest import Probe
from prefloop.servers.postgres import Postgres
from tests.postgres import run_server
from tests.trainer.fakes import FakeGateway, FakePolicy
from trainer.run import rounds
from trainer.run.lease import Lease, LeaseLost, name_holder, name_place, read_holding, take_lease
from trainer.run.publish.publisher import Publisher, Trained
from trainer.run.state_lock import StateLock

LEASE_S = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with run_server() as server:
        yield server


@pytest.fixture
def database(server: Postgres, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    engine = open_database(server.create_database(f"lease_{abs(hash(request.node.name))}"))
    create_tables(engine, inbox.metadata)
    yield engine
    engine.dispose()


class Contender:
    """One trainer's lease and writer. `lost` says why it lost its lease."""

    def __init__(self, database: sa.Engine, name: str) -> None:
        self.lost: list[str] = []
        self.lease = Lease(
            database,
            LEASE_S,
            may_try=lambda: True,
            view=lambda: f'"{name} works"',
            on_standby=lambda holding: None,
            on_lost=self.lost.append,
            holder=name,
        )
        self.writer = Writer(database, guard=self.lease.guard)


def begin(connection: sa.Connection) -> int:
    return rounds.begin_round(connection, kind="dpo", last_preference_id=0, trigger_choice_at=0.0, now=1.0).number


def count_rounds(database: sa.Engine) -> int:
    with database.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(rounds.rounds)).scalar_one()


def test_a_trainer_that_slept_past_its_lease_writes_nothing(database: sa.Engine) -> None:
    sleeper, next_one = Contender(database, "sleeper"), Contender(database, "next")
    assert sleeper.lease.try_take() and not next_one.lease.try_take()
    sleeper.writer.run(lambda connection: rounds.store_plan(connection, 1, "plan")).result()
    time.sleep(LEASE_S + 0.1)
    assert next_one.lease.try_take() and next_one.lease.fence == sleeper.lease.fence + 1
    with pytest.raises(LeaseLost, match="next holds the lease now"):
        sleeper.writer.run(begin).result()
    assert sleeper.lost == ["next holds the lease now"] and count_rounds(database) == 0
    assert next_one.writer.run(begin).result() == 1 and not next_one.lost


def test_a_lease_that_ran_out_and_that_nobody_took_goes_on(database: sa.Engine) -> None:
    """A database that was away for a while ends no round."""
    alone = Contender(database, "alone")
    assert alone.lease.try_take()
    time.sleep(LEASE_S + 0.1)
    alone.lease._renew()
    assert alone.writer.run(begin).result() == 1 and not alone.lost
    with database.connect() as connection:
        holding = read_holding(connection)
    assert holding is not None and 0 < holding.seconds_left <= LEASE_S and holding.view == '"alone works"'


def test_a_transaction_under_way_ends_before_another_trainer_works(database: sa.Engine) -> None:
    """It was paused between the comparison of the fence and its commit: the next one waits for it."""
    paused, next_one = Contender(database, "paused"), Contender(database, "next")
    assert paused.lease.try_take()
    inside, go_on = threading.Event(), threading.Event()

    def write(connection: sa.Connection) -> int:
        inside.set()
        assert go_on.wait(20)
        return begin(connection)

    written = paused.writer.run(write)
    assert inside.wait(20)
    time.sleep(LEASE_S + 0.1)
    taken = threading.Thread(target=next_one.lease.try_take)
    taken.start()
    taken.join(0.5)
    assert taken.is_alive() and not next_one.lease.held.is_set()
    go_on.set()
    taken.join(20)
    assert written.result() == 1 and next_one.lease.held.is_set()
    assert count_rounds(database) == 1


def test_a_lease_is_kept_by_its_thread_and_free_at_once_when_it_is_given_back(database: sa.Engine) -> None:
    first, second = Contender(database, "first"), Contender(database, "second")
    assert first.lease.try_take()
    first.lease.start()
    second.lease.start()
    assert not second.lease.held.wait(3 * LEASE_S)
    first.lease.stop()
    assert second.lease.held.wait(2 * LEASE_S) and second.lease.fence == 2
    second.lease.stop()


def test_a_trainer_that_is_started_again_on_its_state_directory_need_not_wait(
    database: sa.Engine, tmp_path: Path
) -> None:
    """It has the lock on the directory, so that the one before it is dead; a trainer elsewhere waits."""
    place = name_place(tmp_path)
    with database.begin() as connection:
        assert take_lease(connection, name_holder(place), 60.0, place) == 1
        assert take_lease(connection, name_holder(name_place(tmp_path / "b")), 60.0, name_place(tmp_path / "b")) is None
        assert take_lease(connection, name_holder(place), 60.0, place) == 2


def make_publisher(contender: Contender, database: sa.Engine, root: Path) -> Publisher:
    return Publisher(
        root,
        FakePolicy().save,
        database,
        contender.writer,
        FakeGateway(),  # type: ignore[arg-type]
        fence=contender.lease.fence,
        base_digest="base",
        rank=16,
        make_probe=lambda: Probe(prompt_token_ids=[1, 2], logprobs=[-1.0], base_logprobs=[-1.0]),
        on_published=lambda: None,
    )


def test_no_number_is_given_twice_and_what_was_published_without_the_lease_counts_for_nothing(
    database: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sleeper sleeps between its number and its checkpoint; each trainer has a disk of its own."""
    sleeper, next_one = Contender(database, "sleeper"), Contender(database, "next")
    assert sleeper.lease.try_take()
    first = make_publisher(sleeper, database, tmp_path / "first")
    assert first.publish(Trained()).manifest.number == 0
    sleeper.writer.run(begin).result()

    def sleep_and_probe() -> Probe:
        time.sleep(LEASE_S + 0.1)
        assert next_one.lease.try_take()
        return Probe(prompt_token_ids=[1, 2], logprobs=[-1.0], base_logprobs=[-1.0])

    monkeypatch.setattr(first, "_make_probe", sleep_and_probe)
    with pytest.raises(LeaseLost):
        first.publish(Trained(settings={"round": 1}))
    second = make_publisher(next_one, database, tmp_path / "second")
    published = second.publish(Trained(settings={"round": 1}))
    ending = rounds.Ending(reason="passed", checkpoint=published.manifest.id)
    next_one.writer.run(lambda connection: rounds.finish_round(connection, 1, ending, 2.0)).result()
    assert published.manifest.number == 2
    assert [path.name[:8] for path in sorted((tmp_path / "first").iterdir())] == ["c-000000", "c-000001"]
    assert [each.manifest.number for each in first.list_counting()] == [0]
    assert [each.manifest.number for each in second.list_counting()] == [2]


def test_a_state_directory_lets_one_process_in_and_the_next_one_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "state" / "trainer.lock"
    code = (
        f"from pathlib import Path; from trainer.run.state_lock import StateLock; lock = StateLock([Path({str(path)!r})]);"
        "print(lock.try_lock(), flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "True\n"
        lock = StateLock([tmp_path / "own.lock", path])
        assert not lock.try_lock() and lock.name_owner() == f"process {process.pid} ({path})"
    finally:
        process.kill()
        process.wait()
    assert lock.try_lock() and lock.try_lock()
    lock.unlock()
