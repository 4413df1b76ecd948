"""Intake over every pair of log and database: what is read once, is stored once."""

import threading
import time
from functools import partial

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.database import Writer, open_database
from feedback.errors import LogUnavailable
from feedback.log import NewRecord, open_log
from feedback.log.sqlite import SqliteLog
from feedback.relay import Relay
from tests.broker import forget_before, name_topic
from tests.postgres import run_server
from tests.trainer.fakes import make_record
from tests.trainer.stores import PAIRS, find_database, find_log, open_empty
from trainer.run.intake.consumer import Consumer, consume_all, consume_partition, measure_lag
from trainer.run.status.metrics import Metrics

PARTITIONS = [0, 1, 2, 3]


@pytest.fixture
def topic() -> str:
    return name_topic()


@pytest.fixture(params=PAIRS)
def urls(request, tmp_path) -> tuple[str, str]:
    """Of the log and of the database."""
    log_kind, database_kind = request.param
    return find_log(log_kind, request, tmp_path), find_database(database_kind, request, tmp_path)


@pytest.fixture
def source(urls):
    opened = open_log(urls[0])
    yield opened
    opened.close()


@pytest.fixture
def database(urls):
    with open_empty(urls[1]) as engine:
        yield engine


@pytest.fixture
def writer(database):
    opened = Writer(database)
    yield opened
    opened.close()


@pytest.fixture
def consume(source, topic, database, writer):
    """One look at all partitions; returns how many records were read."""

    def look(metrics: Metrics | None = None, max_records: int = 100) -> int:
        return consume_all(source, topic, PARTITIONS, database, writer, max_records, metrics or Metrics())

    return look


def sample(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


def count(database) -> int:
    with database.connect() as connection:
        return inbox.count_preferences(connection)


def wait_until(is_true, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_all_partitions_are_consumed_and_the_lag_falls_to_zero(source, topic, database, consume):
    source.append(topic, [make_record(n) for n in range(20)])
    assert sum(measure_lag(source, topic, database).values()) == 20
    assert consume() == 20
    assert count(database) == 20
    assert measure_lag(source, topic, database) == dict.fromkeys(PARTITIONS, 0)
    assert consume() == 0


def test_a_repeated_event_is_one_preference(source, topic, database, consume):
    source.append(topic, [make_record(1), make_record(1)])
    source.append(topic, [make_record(1)])
    metrics = Metrics()
    assert consume(metrics) == 3
    assert count(database) == 1
    assert sample(metrics, "prefloop_consumed_total") == 1


def make_poison(number: int) -> NewRecord:
    whole = make_record(number)
    return NewRecord(key=whole.key, value=b"{\xff", headers=whole.headers)


def make_future(number: int) -> NewRecord:
    whole = make_record(number)
    return NewRecord(key=whole.key, value=whole.value, headers={**whole.headers, "ce_type": b"prefloop.choice.v9"})


def test_poison_and_future_versions_are_buried_and_told_to_others(source, topic, database, writer, consume):
    bad = [make_poison(1), make_future(2)]
    source.append(topic, [*bad, make_record(3)])
    assert consume() == 3
    with database.connect() as connection:
        assert inbox.count_dead_letters(connection) == 2
    assert count(database) == 1
    letters = f"{topic}.dead-letters"
    relay = Relay(database, writer, source, letters, outbox=inbox.dead_letter_outbox)
    assert (relay.move_batch(), relay.move_batch()) == (2, 0)
    found = {r.key: r for p in source.partitions(letters) for r in source.read(letters, p, 0, 10, 0.0)}
    for record in bad:
        letter = found[record.key]
        assert letter.value == record.value
        assert record.headers.items() <= letter.headers.items()
        assert letter.headers["prefloop_place"].startswith(f"{topic}/".encode())
    assert {letter.headers["prefloop_error"] for letter in found.values()} == {b"PoisonEvent", b"FutureVersion"}


def test_a_dead_letter_is_told_once_however_often_it_is_read(source, topic, database, writer, consume):
    source.append(topic, [make_poison(1)])
    consume()
    with database.begin() as connection:
        connection.execute(inbox.offsets.update().values(next=0))
    consume()
    relay = Relay(database, writer, source, f"{topic}.dead-letters", outbox=inbox.dead_letter_outbox)
    assert relay.move_batch() == 1


def test_offsets_are_published_for_those_who_watch_the_lag(urls, source, topic, database, writer):
    source.append(topic, [make_record(n) for n in range(8)])
    with running_consumer(urls, topic, database, writer):
        wait_until(lambda: sum(source.committed("trainer", topic).values()) == 8)


def test_what_retention_took_is_recorded_and_reading_goes_on_behind_it(urls, source, topic, database, consume):
    source.append(topic, [NewRecord(key=b"k", value=b"", headers={}) for _ in range(3)])
    source.append(topic, [make_record(n) for n in range(20)])
    [partition] = [
        p
        for p in PARTITIONS
        if source.read(topic, p, 0, 1, 0.0)[:1] and source.read(topic, p, 0, 1, 0.0)[0].key == b"k"
    ]
    num_records = source.bounds(topic, partition)[1]
    forget_before(urls[0], topic, partition, 3)
    metrics = Metrics()
    consume(metrics)
    consume(metrics)
    assert sample(metrics, "prefloop_lost_records_total") == 3
    with database.connect() as connection:
        assert inbox.load_offset(connection, topic, partition) == num_records
        assert [tuple(row)[:4] for row in connection.execute(inbox.gaps.select())] == [(topic, partition, 0, 3)]
        assert inbox.count_dead_letters(connection) == 0
    assert count(database) == 20


class OvertakenLog:
    """A log whose reader loses its partition between reading a batch and storing it."""

    def __init__(self, inner, overtake) -> None:
        self.inner, self.overtake = inner, overtake

    def read(self, *arguments):
        records = self.inner.read(*arguments)
        self.overtake()
        return records


@pytest.mark.parametrize("num_taken", [1, 10])
def test_a_batch_that_another_reader_stored_meanwhile_is_not_doubled(source, topic, database, writer, num_taken):
    """A rebalance in the middle of a batch: the new owner has stored all of it, or a part."""
    source.append(topic, [make_record(1)] * 4 + [make_record(1)] * 6)
    partition = next(p for p in PARTITIONS if source.bounds(topic, p)[1])
    read = partial(consume_partition, topic=topic, partition=partition, database=database, writer=writer)
    theirs, ours = Metrics(), Metrics()
    overtaken = OvertakenLog(source, lambda: read(source, max_records=num_taken, metrics=theirs))
    read(overtaken, max_records=5, metrics=ours)
    with database.connect() as connection:
        assert inbox.load_offset(connection, topic, partition) == max(5, num_taken)
    assert sample(theirs, "prefloop_consumed_total") == 1
    assert sample(ours, "prefloop_consumed_total") == 0
    assert count(database) == 1


def test_an_inbox_that_was_set_back_is_read_again_from_there(source, topic, database, writer):
    source.append(topic, [make_record(1)] * 4)
    partition = next(p for p in PARTITIONS if source.bounds(topic, p)[1])
    read = partial(consume_partition, topic=topic, partition=partition, database=database, writer=writer)
    metrics = Metrics()
    assert read(source, max_records=2, metrics=metrics) == 2

    def set_back() -> None:
        with database.begin() as connection:
            connection.execute(inbox.offsets.update().values(next=0))

    assert read(OvertakenLog(source, set_back), max_records=2, metrics=metrics) == 0
    assert sample(metrics, "prefloop_consumer_seeks_total") == 1
    assert read(source, max_records=10, metrics=metrics) == 4
    assert count(database) == 1


def test_readers_who_believe_to_own_the_same_partition_double_nothing(urls, source, topic, database):
    source.append(topic, [make_record(n) for n in range(200)])
    all_metrics = [Metrics() for _ in range(3)]

    def consume_everything(metrics: Metrics) -> None:
        engine = open_database(urls[1])
        own, own_writer = open_log(urls[0]), Writer(engine)
        while consume_all(own, topic, PARTITIONS, engine, own_writer, 7, metrics):
            pass
        own_writer.close()
        own.close()
        engine.dispose()

    threads = [threading.Thread(target=consume_everything, args=(metrics,)) for metrics in all_metrics]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert count(database) == 200
    assert sum(sample(metrics, "prefloop_consumed_total") for metrics in all_metrics) == 200
    assert measure_lag(source, topic, database) == dict.fromkeys(PARTITIONS, 0)


class running_consumer:
    """A consumer in its thread, stopped at the end of the block."""

    def __init__(self, urls, topic, database, writer, *, opener=None, max_records=50, report=lambda lag, error: None):
        self.metrics = Metrics()
        opener = opener or (lambda: open_log(urls[0]))
        self.thread = Consumer(opener, topic, database, writer, self.metrics, max_records, report)

    @property
    def num_consumed(self) -> float:
        return sample(self.metrics, "prefloop_consumed_total")

    @property
    def num_owned(self) -> float:
        return sample(self.metrics, "prefloop_consumer_partitions")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


def test_consumers_of_a_group_share_the_partitions_and_lose_and_double_nothing(urls, source, topic, database, writer):
    """One joins while the other is in the middle of it, and one leaves while records still come."""
    stop = threading.Event()
    numbers = iter(range(1_000_000))
    num_appended = 0

    def append() -> None:
        nonlocal num_appended
        while not stop.is_set():
            source.append(topic, [make_record(next(numbers)) for _ in range(6)])
            num_appended += 6
            time.sleep(0.05)  # no faster than small batches are stored

    appending = threading.Thread(target=append)
    second_database = open_database(urls[1])
    second_writer = Writer(second_database)
    try:
        with running_consumer(urls, topic, database, writer, max_records=7) as first:
            appending.start()
            wait_until(lambda: first.num_owned == 4 and first.num_consumed > 50)
            with running_consumer(urls, topic, second_database, second_writer, max_records=7) as second:
                wait_until(lambda: (first.num_owned, second.num_owned) == (2, 2), 40)
                so_far = second.num_consumed
                wait_until(lambda: second.num_consumed > so_far + 50)
            wait_until(lambda: first.num_owned == 4, 40)
            stop.set()
            appending.join()
            wait_until(lambda: count(database) == num_appended, 40)
        assert first.num_consumed + second.num_consumed == num_appended
    finally:
        stop.set()
        second_writer.close()
        second_database.dispose()


class FailingOnce:
    """Opens a log that is down the first time."""

    def __init__(self, url: str) -> None:
        self.url, self.num_opened = url, 0

    def __call__(self):
        self.num_opened += 1
        if self.num_opened == 1:
            raise LogUnavailable("broker is down")
        return open_log(self.url)


def test_rows_are_placed_as_they_come_and_what_others_stored_when_the_log_is_read(
    urls, source, topic, database, writer, consume
):
    source.append(topic, [make_record(n) for n in range(4)])
    consume()

    def list_splits() -> list[tuple[str, bool]]:
        with database.connect() as connection:
            rows = connection.execute(sa.select(inbox.preferences).order_by(inbox.preferences.c.id)).all()
        return [(row.split, row.cluster is not None) for row in rows]

    assert list_splits() == [("train", True)] * 4
    stored_by_a_command = sa.update(inbox.preferences).where(inbox.preferences.c.id > 2).values(split="", cluster=None)
    with database.begin() as connection:
        connection.execute(stored_by_a_command)
    with running_consumer(urls, topic, database, writer):
        wait_until(lambda: list_splits() == [("train", True)] * 4)


def test_a_log_that_is_down_is_opened_again_and_the_reason_is_shown(urls, source, topic, database, writer):
    source.append(topic, [make_record(n) for n in range(5)])
    reports = []
    opener = FailingOnce(urls[0])
    with running_consumer(
        urls, topic, database, writer, opener=opener, report=lambda lag, error: reports.append((lag, error))
    ) as consumer:
        wait_until(lambda: count(database) == 5)
        wait_until(lambda: (0, "") in reports)
    assert reports[0] == (None, "broker is down")
    assert sample(consumer.metrics, "prefloop_consumer_errors_total") == 1
    assert sample(consumer.metrics, "prefloop_consumer_lag") == 0


def test_a_database_that_is_down_pauses_intake_and_buries_nothing(tmp_path, topic):
    source = SqliteLog(f"sqlite:{tmp_path / 'log.db'}")
    with run_server() as server, open_empty(server.create_database("trainer")) as database:
        writer = Writer(database)
        with running_consumer((f"sqlite:{tmp_path / 'log.db'}",), topic, database, writer, max_records=5) as consumer:
            source.append(topic, [make_record(n) for n in range(40)])
            wait_until(lambda: consumer.num_consumed > 0)
            server.kill()
            source.append(topic, [make_record(n) for n in range(40, 80)])
            wait_until(lambda: sample(consumer.metrics, "prefloop_consumer_errors_total") > 0)
            server.start()
            wait_until(lambda: count(database) == 80, 60)
        with database.connect() as connection:
            assert inbox.count_dead_letters(connection) == 0
        writer.close()
    source.close()


def test_intake_goes_on_while_another_thread_writes(source, topic, database, writer, consume):
    """A round marks preferences as used through the same writer."""
    source.append(topic, [make_record(n) for n in range(50)])
    stop = threading.Event()

    def mark() -> None:
        while not stop.is_set():
            writer.run(lambda connection: inbox.mark_used(connection, [1, 2, 3], as_new=True)).result()

    marker = threading.Thread(target=mark)
    marker.start()
    while consume(max_records=3):
        pass
    stop.set()
    marker.join()
    assert count(database) == 50
