from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.choices import count_outbox, store_comparison
from feedback.database import Writer, create_tables, metadata, open_database
from feedback.errors import LogUnavailable
from feedback.log import NewRecord, Record
from feedback.log.sqlite import SqliteLog
from feedback.relay import Relay, RelayState
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_comparison

TOPIC = "t"


class FlakyLog(SqliteLog):
    """A log that fails before or after it appended, as often as it is told."""

    failures_before = 0
    failures_after = 0

    def append(self, topic: str, records: Sequence[NewRecord]) -> None:
        if self.failures_before:
            self.failures_before -= 1
            raise LogUnavailable("down")
        super().append(topic, records)
        if self.failures_after:
            self.failures_after -= 1
            raise LogUnavailable("no acknowledgement")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FlakyLog]:
    log = FlakyLog(f"sqlite:{tmp_path / 'log.db'}", num_partitions=1)
    yield log
    log.close()


@pytest.fixture
def writer(database: sa.Engine) -> Iterator[Writer]:
    writer = Writer(database)
    yield writer
    writer.close()


def choose(writer: Writer, *numbers: int) -> None:
    for number in numbers:
        comparison = make_comparison(f"cmp-{number}")
        writer.run(lambda connection, c=comparison: store_comparison(connection, c)).result(10)
        writer.run(lambda c, n=number: record_choice(c, f"cmp-{n}", "first", None, False, "api", 1001.0)).result(10)


def read_log(log: FlakyLog) -> list[Record]:
    return log.read(TOPIC, 0, 0, 1000, 0.0)


def num_pending(database: sa.Engine) -> int:
    with database.connect() as connection:
        return count_outbox(connection)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_batches_reach_the_log_in_order_and_leave_the_outbox(
    database: sa.Engine, writer: Writer, log: FlakyLog
) -> None:
    moved: list[int] = []
    relay = Relay(database, writer, log, TOPIC, max_batch=2, on_moved=lambda num, age_s: moved.append(num))
    choose(writer, 1, 2, 3)
    assert [relay.move_batch() for _ in range(3)] == [2, 1, 0]
    assert moved == [2, 1]
    assert [record.key for record in read_log(log)] == [b"cmp-1", b"cmp-2", b"cmp-3"]
    assert num_pending(database) == 0


def test_rows_stay_while_the_log_is_down(database: sa.Engine, writer: Writer, log: FlakyLog) -> None:
    relay = Relay(database, writer, log, TOPIC)
    choose(writer, 1)
    log.failures_before = 1
    with pytest.raises(LogUnavailable):
        relay.move_batch()
    assert (num_pending(database), read_log(log)) == (1, [])
    assert relay.move_batch() == 1


def test_lost_acknowledgement_repeats_with_the_same_event_id(
    database: sa.Engine, writer: Writer, log: FlakyLog
) -> None:
    relay = Relay(database, writer, log, TOPIC)
    choose(writer, 1)
    log.failures_after = 1
    with pytest.raises(LogUnavailable):
        relay.move_batch()
    relay.move_batch()
    one, two = read_log(log)
    assert one.headers["ce_id"] == two.headers["ce_id"]


def test_thread_outlives_outages_and_moves_what_came_meanwhile(
    database: sa.Engine, writer: Writer, log: FlakyLog
) -> None:
    failures: list[Exception] = []
    log.failures_before = 2
    choose(writer, 1)
    relay = Relay(database, writer, log, TOPIC, on_failure=failures.append)
    relay.start()
    choose(writer, 2)
    relay.notify()
    wait_until(lambda: num_pending(database) == 0)
    relay.close()
    assert len(failures) == 2
    assert [record.key for record in read_log(log)] == [b"cmp-1", b"cmp-2"]


def test_a_relay_that_never_started_can_be_closed(database: sa.Engine, writer: Writer, log: FlakyLog) -> None:
    Relay(database, writer, log, TOPIC).close()


class HangingLog(SqliteLog):
    """A log that answers nothing until it is closed."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_asked, self.is_closed = threading.Event(), threading.Event()

    def append(self, topic: str, records: Sequence[NewRecord]) -> None:
        self.is_asked.set()
        self.is_closed.wait()
        raise LogUnavailable("closed")

    def close(self) -> None:
        self.is_closed.set()
        super().close()


def test_a_relay_closes_while_the_log_hangs_and_keeps_what_it_could_not_move(
    database: sa.Engine, writer: Writer, tmp_path: Path
) -> None:
    log = HangingLog(f"sqlite:{tmp_path / 'hanging.db'}")
    choose(writer, 1)
    relay = Relay(database, writer, log, TOPIC)
    relay.start()
    assert log.is_asked.wait(10)
    began = time.monotonic()
    relay.close(timeout_s=0.2)
    assert time.monotonic() - began < 5
    log.close()
    assert num_pending(database) == 1


def test_state_tells_what_waits_and_what_failed(database: sa.Engine, writer: Writer, log: FlakyLog) -> None:
    choose(writer, 1, 2)
    log.failures_before = 1
    seen: list[RelayState] = []
    relay = Relay(database, writer, log, TOPIC, on_failure=lambda error: seen.append(relay.state))
    relay.start()
    wait_until(lambda: relay.state.num_moved == 2)
    wait_until(lambda: relay.state.failing_since is None)
    relay.close()
    [failed] = seen
    assert (failed.num_failures, failed.num_moved) == (1, 0)
    assert failed.failing_since is not None and time.time() - failed.failing_since < 60
    assert failed.backlog is not None and failed.backlog.num_rows == 2
    assert failed.backlog.oldest_age_s > 0  # their time is in 1970
    assert relay.state.num_failures == 1


@pytest.fixture
def shared_database(postgres_url: str) -> Iterator[sa.Engine]:
    """A PostgreSQL that several gateways share."""
    engine = open_database(postgres_url)
    metadata.drop_all(engine)
    create_tables(engine, metadata)
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


def test_relays_of_several_gateways_keep_the_order_and_move_each_row_once(
    shared_database: sa.Engine, log: FlakyLog
) -> None:
    writer = Writer(shared_database)
    choose(writer, *range(60))
    relays = [Relay(shared_database, writer, log, TOPIC, max_batch=7, poll_s=0.01) for _ in range(3)]
    for relay in relays:
        relay.start()
    choose(writer, *range(60, 120))
    wait_until(lambda: num_pending(shared_database) == 0)
    for relay in relays:
        relay.close()
    writer.close()
    assert [record.key for record in read_log(log)] == [b"cmp-%d" % number for number in range(120)]
    assert sum(relay.state.num_moved for relay in relays) == 120


def test_no_relay_overtakes_one_that_holds_rows(shared_database: sa.Engine, log: FlakyLog, tmp_path: Path) -> None:
    writer, hanging = Writer(shared_database), HangingLog(f"sqlite:{tmp_path / 'hanging.db'}")
    choose(writer, 1)
    holder = Relay(shared_database, writer, hanging, TOPIC)
    holder.start()
    assert hanging.is_asked.wait(10)
    choose(writer, 2)
    other = Relay(shared_database, writer, log, TOPIC)
    assert other.move_batch() == 0
    holder.close(timeout_s=0.1)
    hanging.close()
    wait_until(lambda: other.move_batch() == 2)
    assert [record.key for record in read_log(log)] == [b"cmp-1", b"cmp-2"]
    writer.close()
