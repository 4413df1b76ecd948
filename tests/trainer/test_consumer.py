import threading
import time
from pathlib import Path

import pytest

from feedback import inbox
from feedback.database import Writer, create_tables, open_database
from feedback.errors import LogUnavailable, OffsetOutOfRange
from feedback.log import open_log
from tests.trainer.fakes import make_record
from trainer.consumer import Consumer, consume_all, measure_lag
from trainer.metrics import Metrics

TOPIC = "prefloop.feedback"


@pytest.fixture
def source(tmp_path: Path):
    opened = open_log(f"sqlite:{tmp_path / 'log.db'}")
    yield opened
    opened.close()


@pytest.fixture
def database(tmp_path: Path):
    engine = open_database(f"sqlite:///{tmp_path / 'trainer.db'}")
    create_tables(engine, inbox.metadata)
    return engine


@pytest.fixture
def writer(database):
    opened = Writer(database)
    yield opened
    opened.close()


def count(database) -> int:
    with database.connect() as connection:
        return inbox.count_preferences(connection)


def wait_until(is_true, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_all_partitions_are_consumed_and_the_lag_falls_to_zero(source, database, writer):
    source.append(TOPIC, [make_record(n) for n in range(20)])
    assert measure_lag(source, TOPIC, database) == 20
    assert consume_all(source, TOPIC, database, writer, 100, Metrics()) == 20
    assert (count(database), measure_lag(source, TOPIC, database)) == (20, 0)
    assert consume_all(source, TOPIC, database, writer, 100, Metrics()) == 0


def test_a_repeated_event_is_one_preference(source, database, writer):
    source.append(TOPIC, [make_record(1), make_record(1)])
    source.append(TOPIC, [make_record(1)])
    metrics = Metrics()
    consume_all(source, TOPIC, database, writer, 100, metrics)
    assert count(database) == 1
    assert metrics.registry.get_sample_value("prefloop_consumed_total") == 1


def test_a_poison_record_is_buried_and_does_not_stop_intake(source, database, writer):
    poison = make_record(1)
    poison = type(poison)(key=poison.key, value=b"{", headers=poison.headers)
    source.append(TOPIC, [poison, make_record(2)])
    consume_all(source, TOPIC, database, writer, 100, Metrics())
    with database.connect() as connection:
        assert inbox.count_dead_letters(connection) == 1
    assert count(database) == 1


def test_offsets_are_published_for_those_who_watch_the_lag(source, database, writer):
    source.append(TOPIC, [make_record(n) for n in range(8)])
    consume_all(source, TOPIC, database, writer, 100, Metrics())
    assert sum(source.committed("trainer", TOPIC).values()) == 8


class TrimmedLog:
    """A log of one partition whose first three records retention took."""

    def partitions(self, topic):
        return [0]

    def bounds(self, topic, partition):
        return 3, 5

    def read(self, topic, partition, offset, max_records, timeout_s):
        if offset < 3:
            raise OffsetOutOfRange(topic, partition, offset, 3, 5)
        return []


def test_what_retention_took_is_recorded_and_reading_goes_on_behind_it(database, writer):
    metrics = Metrics()
    consume_all(TrimmedLog(), TOPIC, database, writer, 100, metrics)
    with database.connect() as connection:
        assert inbox.load_offset(connection, TOPIC, 0) == 3
    assert metrics.registry.get_sample_value("prefloop_lost_records_total") == 3


class FailingOnce:
    """Opens a log that is down the first time."""

    def __init__(self, path: Path) -> None:
        self.path, self.num_opened = path, 0

    def __call__(self):
        self.num_opened += 1
        if self.num_opened == 1:
            raise LogUnavailable("broker is down")
        return open_log(f"sqlite:{self.path}")


def test_a_log_that_is_down_is_opened_again_and_the_reason_is_shown(source, database, writer, tmp_path):
    source.append(TOPIC, [make_record(n) for n in range(5)])
    reports, metrics = [], Metrics()
    opener = FailingOnce(tmp_path / "log.db")
    consumer = Consumer(opener, TOPIC, database, writer, metrics, 2, lambda lag, error: reports.append((lag, error)))
    consumer.start()
    wait_until(lambda: count(database) == 5)
    wait_until(lambda: (0, "") in reports)
    consumer.stop()
    consumer.join(5)
    assert not consumer.is_alive()
    assert reports[0] == (None, "broker is down")
    assert metrics.registry.get_sample_value("prefloop_consumer_errors_total") == 1


def test_intake_goes_on_while_another_thread_writes(source, database, writer):
    """A round marks preferences as used through the same writer."""
    source.append(TOPIC, [make_record(n) for n in range(50)])
    stop = threading.Event()

    def mark() -> None:
        while not stop.is_set():
            writer.run(lambda connection: inbox.mark_used(connection, [1, 2, 3], as_new=True)).result()

    marker = threading.Thread(target=mark)
    marker.start()
    while consume_all(source, TOPIC, database, writer, 3, Metrics()):
        pass
    stop.set()
    marker.join()
    assert count(database) == 50
