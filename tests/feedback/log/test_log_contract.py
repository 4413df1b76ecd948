"""What every log back end must do. A back end joins by a line in BACKENDS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feedback.errors import OffsetOutOfRange
from feedback.log import Log, NewRecord, Record, open_log
from feedback.log.base import choose_partition, count_lag
from feedback.log.sqlite import SqliteLog

BACKENDS: dict[str, Callable[[Path], str]] = {"sqlite": lambda directory: f"sqlite:{directory / 'log.db'}"}
TOPIC = "prefloop.feedback"


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    log = open_log(url)
    yield log
    log.close()


def read_all(log: Log, topic: str = TOPIC) -> list[Record]:
    return [r for p in log.partitions(topic) for r in log.read(topic, p, log.bounds(topic, p)[0], 10_000, 0.0)]


def test_new_topic_has_four_empty_partitions(log: Log) -> None:
    assert log.partitions(TOPIC) == [0, 1, 2, 3]
    assert [log.bounds(TOPIC, partition) for partition in range(4)] == [(0, 0)] * 4
    assert log.read(TOPIC, 0, 0, 10, 0.0) == []


def test_record_comes_back_with_its_bytes_and_its_place(log: Log) -> None:
    before_ms = time.time_ns() // 1_000_000
    log.append(TOPIC, [NewRecord(key=b"k\x00", value=b"\xff\x00v", headers={"ce_id": b"1", "empty": b""})])
    partition = choose_partition(b"k\x00", 4)
    [record] = log.read(TOPIC, partition, 0, 10, 0.0)
    assert (record.key, record.value, dict(record.headers)) == (b"k\x00", b"\xff\x00v", {"ce_id": b"1", "empty": b""})
    assert (record.topic, record.partition, record.offset) == (TOPIC, partition, 0)
    assert before_ms <= record.timestamp_ms <= time.time_ns() // 1_000_000
    assert log.bounds(TOPIC, partition) == (0, 1)


def test_partition_is_crc32_of_the_key() -> None:
    assert choose_partition(b"123456789", 4) == 0xCBF43926 % 4  # the check value of CRC-32


def test_equal_keys_share_a_partition_and_keep_their_order(log: Log) -> None:
    for start in (0, 10):
        log.append(TOPIC, [NewRecord(key=b"%d" % (i % 3), value=b"%d" % i) for i in range(start, start + 10)])
    for key in (b"0", b"1", b"2"):
        own = [int(r.value) for r in read_all(log) if r.key == key]
        assert own == sorted(own) == [i for i in range(20) if i % 3 == int(key)]


def test_read_starts_at_the_offset_and_stops_at_the_limit(log: Log) -> None:
    log.append(TOPIC, [NewRecord(key=b"k", value=b"%d" % i) for i in range(5)])
    partition = choose_partition(b"k", 4)
    assert [r.offset for r in log.read(TOPIC, partition, 1, 2, 0.0)] == [1, 2]
    assert [r.value for r in log.read(TOPIC, partition, 3, 100, 0.0)] == [b"3", b"4"]


def test_read_at_the_end_waits_and_gives_nothing(log: Log) -> None:
    began = time.monotonic()
    assert log.read(TOPIC, 0, 0, 10, 0.2) == []
    assert 0.15 <= time.monotonic() - began < 5


def test_read_at_the_end_wakes_for_a_record(log: Log) -> None:
    partition = choose_partition(b"k", 4)
    timer = threading.Timer(0.1, log.append, (TOPIC, [NewRecord(key=b"k", value=b"late")]))
    timer.start()
    began = time.monotonic()
    assert [r.value for r in log.read(TOPIC, partition, 0, 10, 20.0)] == [b"late"]
    assert time.monotonic() - began < 10
    timer.join()


def test_offset_outside_the_bounds_is_refused(log: Log) -> None:
    log.append(TOPIC, [NewRecord(key=b"k", value=b"")])
    partition = choose_partition(b"k", 4)
    with pytest.raises(OffsetOutOfRange) as caught:
        log.read(TOPIC, partition, 2, 10, 0.0)
    assert (caught.value.begin, caught.value.end) == (0, 1)


def test_appending_nothing_changes_nothing(log: Log) -> None:
    log.append(TOPIC, [])
    assert read_all(log) == []


def test_topics_are_apart(log: Log) -> None:
    log.append("a", [NewRecord(key=b"k", value=b"a")])
    log.append("b", [NewRecord(key=b"k", value=b"b")])
    assert [r.value for r in read_all(log, "a")] == [b"a"]
    assert [r.offset for r in read_all(log, "b")] == [0]


def test_records_outlive_the_log_object(url: str) -> None:
    log = open_log(url)
    log.append(TOPIC, [NewRecord(key=b"k", value=b"kept")])
    log.close()
    again = open_log(url)
    assert [r.value for r in read_all(again)] == [b"kept"]
    again.close()


def test_a_second_client_sees_records_at_once(url: str, log: Log) -> None:
    reader = open_log(url)
    log.append(TOPIC, [NewRecord(key=b"k", value=b"seen")])
    assert [r.value for r in read_all(reader)] == [b"seen"]
    reader.close()


def test_concurrent_appends_lose_and_double_nothing(url: str) -> None:
    def append_many(writer: int) -> None:
        own = open_log(url)
        for i in range(20):
            own.append(TOPIC, [NewRecord(key=b"%d" % i, value=b"%d-%d" % (writer, i))])
        own.close()

    threads = [threading.Thread(target=append_many, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = open_log(url)
    found = read_all(log)
    assert sorted(r.value for r in found) == sorted(b"%d-%d" % (w, i) for w in range(4) for i in range(20))
    for partition in range(4):
        assert [r.offset for r in found if r.partition == partition] == list(range(log.bounds(TOPIC, partition)[1]))
    log.close()


def test_groups_publish_how_far_they_read(log: Log) -> None:
    log.append(TOPIC, [NewRecord(key=b"k", value=b"")] * 5)
    partition = choose_partition(b"k", 4)
    assert log.committed("trainer", TOPIC) == {}
    assert count_lag(log, "trainer", TOPIC) == 5
    log.commit("trainer", TOPIC, {partition: 1})
    log.commit("trainer", TOPIC, {partition: 3})
    assert log.committed("trainer", TOPIC) == {partition: 3}
    assert log.committed("other", TOPIC) == {}
    assert count_lag(log, "trainer", TOPIC) == 2


def test_retention_moves_the_beginning(tmp_path: Path) -> None:
    """Retention is the broker's affair in Kafka; the embedded log has a method for it."""
    log = SqliteLog(f"sqlite:{tmp_path / 'log.db'}", num_partitions=1)
    log.append(TOPIC, [NewRecord(key=b"k", value=b"%d" % i) for i in range(4)])
    log.delete_before(TOPIC, 0, 2)
    assert log.bounds(TOPIC, 0) == (2, 4)
    with pytest.raises(OffsetOutOfRange):
        log.read(TOPIC, 0, 1, 10, 0.0)
    log.append(TOPIC, [NewRecord(key=b"k", value=b"4")])
    assert [r.offset for r in log.read(TOPIC, 0, 2, 10, 0.0)] == [2, 3, 4]
    log.close()


def test_topic_keeps_its_number_of_partitions(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'log.db'}"
    first = SqliteLog(url, num_partitions=2)
    first.append(TOPIC, [NewRecord(key=b"k", value=b"")])
    first.close()
    later = SqliteLog(url, num_partitions=8)
    assert later.partitions(TOPIC) == [0, 1]
    later.close()


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="no log back end"):
        open_log("carrier-pigeon:coop")
