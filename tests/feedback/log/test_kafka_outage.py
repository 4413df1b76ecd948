"""The Kafka log while its broker is down, killed, or hangs. The broker is the test's own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from feedback.errors import LogUnavailable
from feedback.log import Log, LogOptions, NewRecord, open_log
from feedback.log.base import choose_partition
from prefloop.servers.kafka import Broker
from prefloop.servers.ports import find_port
from tests.broker import name_topic, run_broker

OPTIONS = LogOptions(timeout_s=4.0, session_timeout_s=6.0)
PARTITION = choose_partition(b"k", 4)


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Broker]:
    with run_broker() as broker:
        yield broker


@pytest.fixture
def broker(own_broker: Broker) -> Iterator[Broker]:
    yield own_broker
    if not own_broker.is_running:
        own_broker.start()
    os.kill(own_broker.pid, signal.SIGCONT)


@pytest.fixture
def log(broker: Broker) -> Iterator[Log]:
    log = open_log(broker.url, OPTIONS)
    yield log
    log.close()


@pytest.fixture
def topic() -> str:
    return name_topic()


def number(value: int) -> NewRecord:
    return NewRecord(key=b"k", value=b"%d" % value)


def insist(fn: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Do as a relay does: try again until it succeeds."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fn()
            return
        except LogUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def read_values(log: Log, topic: str) -> list[int]:
    return [int(r.value) for r in log.read(topic, PARTITION, 0, 10_000, 0.0)]


def test_opening_succeeds_while_the_broker_is_down_and_calls_say_so_in_time() -> None:
    log = open_log(f"kafka://127.0.0.1:{find_port()}", LogOptions(timeout_s=2.0))
    calls: list[Callable[[], object]] = [
        lambda: log.append("t", [number(1)]),
        lambda: log.partitions("t"),
        lambda: log.bounds("t", 0),
        lambda: log.read("t", 0, 0, 10, 0.0),
        lambda: log.committed("g", "t"),
        lambda: log.commit("g", "t", {0: 1}),
        lambda: log.find_offset("t", 0, 0),
        lambda: log.join("g", "t").partitions(),
    ]
    for call in calls:
        began = time.monotonic()
        with pytest.raises(LogUnavailable):
            call()
        assert time.monotonic() - began < 5
    log.close()


def test_acknowledged_records_outlive_a_killed_broker_and_the_log_recovers(
    broker: Broker, log: Log, topic: str
) -> None:
    log.append(topic, [number(i) for i in range(100)])
    assert len(read_values(log, topic)) == 100
    broker.kill()
    with pytest.raises(LogUnavailable):
        log.append(topic, [number(100)])
    with pytest.raises(LogUnavailable):
        log.read(topic, PARTITION, 100, 10, 0.0)
    broker.start()
    insist(lambda: log.append(topic, [number(101)]))
    insist(lambda: read_values(log, topic))
    values = read_values(log, topic)
    assert values[:100] == list(range(100))
    assert set(values[100:]) <= {100, 101} and values[-1] == 101  # what failed may have been appended


def test_an_append_rides_out_a_short_outage(broker: Broker, topic: str) -> None:
    log = open_log(broker.url, LogOptions(timeout_s=20.0))
    log.append(topic, [number(0)])
    broker.kill()
    restarter = threading.Timer(0.5, broker.start)
    restarter.start()
    log.append(topic, [number(1)])
    restarter.join()
    insist(lambda: read_values(log, topic))
    assert read_values(log, topic) == [0, 1]
    log.close()


def test_a_hung_broker_is_noticed_in_time_and_nothing_is_lost(broker: Broker, log: Log, topic: str) -> None:
    log.append(topic, [number(0)])
    assert read_values(log, topic) == [0]
    os.kill(broker.pid, signal.SIGSTOP)
    for call in (
        lambda: log.append(topic, [number(1)]),
        lambda: log.read(topic, PARTITION, 1, 10, 0.0),
        lambda: log.bounds(topic, PARTITION),
    ):
        began = time.monotonic()
        with pytest.raises(LogUnavailable):
            call()
        assert time.monotonic() - began < 3 * OPTIONS.timeout_s
    os.kill(broker.pid, signal.SIGCONT)
    insist(lambda: log.append(topic, [number(2)]))
    insist(lambda: read_values(log, topic))
    values = read_values(log, topic)
    assert values[0] == 0 and 2 in values and set(values) <= {0, 1, 2}


def test_closing_ends_a_waiting_append_while_the_broker_hangs(broker: Broker, topic: str) -> None:
    log = open_log(broker.url, LogOptions(timeout_s=60.0))
    log.append(topic, [number(0)])
    os.kill(broker.pid, signal.SIGSTOP)
    failures: list[LogUnavailable] = []

    def append() -> None:
        try:
            log.append(topic, [number(1)])
        except LogUnavailable as error:
            failures.append(error)

    appending = threading.Thread(target=append)
    appending.start()
    time.sleep(0.5)
    began = time.monotonic()
    log.close()
    appending.join(10)
    assert not appending.is_alive() and len(failures) == 1
    assert time.monotonic() - began < 5


def test_a_member_survives_its_broker(broker: Broker, log: Log, topic: str) -> None:
    member = log.join(topic, topic)

    def own_all() -> None:
        if member.partitions() != [0, 1, 2, 3]:
            raise LogUnavailable("not yet")

    insist(own_all)
    broker.kill()
    broker.start()
    time.sleep(1)
    insist(own_all)
    insist(lambda: log.commit(topic, topic, {PARTITION: 0}))
    assert log.committed(topic, topic) == {PARTITION: 0}


def append_in_vain(log: Log, topic: str) -> None:
    with pytest.raises(LogUnavailable):
        log.append(topic, [number(1)])


def test_waiting_for_a_hung_broker_costs_no_processor(broker: Broker, topic: str) -> None:
    """The serving threads of a gateway share the interpreter with the relay that waits."""
    log = open_log(broker.url, LogOptions(timeout_s=6.0))
    log.append(topic, [number(0)])
    os.kill(broker.pid, signal.SIGSTOP)
    appending = threading.Thread(target=append_in_vain, args=(log, topic))
    appending.start()
    time.sleep(3.2)  # half of its time: the request is given up, and a new connection made that nobody answers
    used_s = time.process_time()
    time.sleep(2.0)
    used_s = time.process_time() - used_s
    log.close()
    appending.join(10)
    assert used_s < 0.4
