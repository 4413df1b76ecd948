"""What every log back end must do. A back end joins by a line in BACKENDS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feedback.errors import OffsetOutOfRange
from feedback.log import Log, LogOptions, Membership, NewRecord, Record, open_log
from feedback.log.base import choose_partition
from feedback.log.sqlite import SqliteLog
from tests.broker import forget_before, name_topic

BACKENDS: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {
    "sqlite": lambda request, directory: f"sqlite:{directory / 'log.db'}",
    "kafka": lambda request, directory: request.getfixturevalue("kafka_url"),
}


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return BACKENDS[request.param](request, tmp_path)


@pytest.fixture
def topic() -> str:
    return name_topic()


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    log = open_log(url)
    yield log
    log.close()


def read_all(log: Log, topic: str) -> list[Record]:
    return [r for p in log.partitions(topic) for r in log.read(topic, p, log.bounds(topic, p)[0], 10_000, 0.0)]


def test_new_topic_has_four_empty_partitions(log: Log, topic: str) -> None:
    assert log.partitions(topic) == [0, 1, 2, 3]
    assert [log.bounds(topic, partition) for partition in range(4)] == [(0, 0)] * 4
    assert log.read(topic, 0, 0, 10, 0.0) == []


def test_record_comes_back_with_its_bytes_and_its_place(log: Log, topic: str) -> None:
    before_ms = time.time_ns() // 1_000_000
    log.append(topic, [NewRecord(key=b"k\x00", value=b"\xff\x00v", headers={"ce_id": b"1", "empty": b""})])
    partition = choose_partition(b"k\x00", 4)
    [record] = log.read(topic, partition, 0, 10, 0.0)
    assert (record.key, record.value, dict(record.headers)) == (b"k\x00", b"\xff\x00v", {"ce_id": b"1", "empty": b""})
    assert (record.topic, record.partition, record.offset) == (topic, partition, 0)
    assert before_ms <= record.timestamp_ms <= time.time_ns() // 1_000_000
    assert log.bounds(topic, partition) == (0, 1)


def test_partition_is_crc32_of_the_key() -> None:
    assert choose_partition(b"123456789", 4) == 0xCBF43926 % 4  # the check value of CRC-32


def test_equal_keys_share_a_partition_and_keep_their_order(log: Log, topic: str) -> None:
    for start in (0, 10):
        log.append(topic, [NewRecord(key=b"%d" % (i % 3), value=b"%d" % i) for i in range(start, start + 10)])
    for key in (b"0", b"1", b"2"):
        own = [int(r.value) for r in read_all(log, topic) if r.key == key]
        assert own == sorted(own) == [i for i in range(20) if i % 3 == int(key)]


def test_read_starts_at_the_offset_and_stops_at_the_limit(log: Log, topic: str) -> None:
    log.append(topic, [NewRecord(key=b"k", value=b"%d" % i) for i in range(5)])
    partition = choose_partition(b"k", 4)
    assert [r.offset for r in log.read(topic, partition, 1, 2, 0.0)] == [1, 2]
    assert [r.value for r in log.read(topic, partition, 3, 100, 0.0)] == [b"3", b"4"]


def test_read_at_the_end_waits_and_gives_nothing(log: Log, topic: str) -> None:
    began = time.monotonic()
    assert log.read(topic, 0, 0, 10, 0.2) == []
    assert 0.15 <= time.monotonic() - began < 5


def test_read_at_the_end_wakes_for_a_record(log: Log, topic: str) -> None:
    partition = choose_partition(b"k", 4)
    timer = threading.Timer(0.1, log.append, (topic, [NewRecord(key=b"k", value=b"late")]))
    timer.start()
    began = time.monotonic()
    assert [r.value for r in log.read(topic, partition, 0, 10, 20.0)] == [b"late"]
    assert time.monotonic() - began < 10
    timer.join()


def test_offset_outside_the_bounds_is_refused(log: Log, topic: str) -> None:
    log.append(topic, [NewRecord(key=b"k", value=b"")])
    partition = choose_partition(b"k", 4)
    with pytest.raises(OffsetOutOfRange) as caught:
        log.read(topic, partition, 2, 10, 0.0)
    assert (caught.value.begin, caught.value.end) == (0, 1)


def test_appending_nothing_changes_nothing(log: Log, topic: str) -> None:
    log.append(topic, [])
    assert read_all(log, topic) == []


def test_topics_are_apart(log: Log, topic: str) -> None:
    log.append(f"{topic}-a", [NewRecord(key=b"k", value=b"a")])
    log.append(f"{topic}-b", [NewRecord(key=b"k", value=b"b")])
    assert [r.value for r in read_all(log, f"{topic}-a")] == [b"a"]
    assert [r.offset for r in read_all(log, f"{topic}-b")] == [0]


def test_records_outlive_the_log_object(url: str, topic: str) -> None:
    log = open_log(url)
    log.append(topic, [NewRecord(key=b"k", value=b"kept")])
    log.close()
    again = open_log(url)
    assert [r.value for r in read_all(again, topic)] == [b"kept"]
    again.close()


def test_a_second_client_sees_records_at_once(url: str, log: Log, topic: str) -> None:
    reader = open_log(url)
    log.append(topic, [NewRecord(key=b"k", value=b"seen")])
    assert [r.value for r in read_all(reader, topic)] == [b"seen"]
    reader.close()


def test_concurrent_appends_lose_and_double_nothing(url: str, topic: str) -> None:
    def append_many(writer: int) -> None:
        own = open_log(url)
        for i in range(20):
            own.append(topic, [NewRecord(key=b"%d" % i, value=b"%d-%d" % (writer, i))])
        own.close()

    threads = [threading.Thread(target=append_many, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = open_log(url)
    found = read_all(log, topic)
    assert sorted(r.value for r in found) == sorted(b"%d-%d" % (w, i) for w in range(4) for i in range(20))
    for partition in range(4):
        assert [r.offset for r in found if r.partition == partition] == list(range(log.bounds(topic, partition)[1]))
    log.close()


def test_groups_publish_how_far_they_read(log: Log, topic: str) -> None:
    log.append(topic, [NewRecord(key=b"k", value=b"")] * 5)
    partition = choose_partition(b"k", 4)
    assert log.committed("trainer", topic) == {}
    log.commit("trainer", topic, {partition: 1})
    log.commit("trainer", topic, {partition: 3})
    assert log.committed("trainer", topic) == {partition: 3}
    assert log.committed("other", topic) == {}


def test_going_back_and_forth_reads_what_is_there(log: Log, topic: str) -> None:
    log.append(topic, [NewRecord(key=b"k", value=b"%d" % i) for i in range(20)])
    partition = choose_partition(b"k", 4)
    for start in (0, 5, 10, 3, 3, 19, 0):
        found = log.read(topic, partition, start, 5, 0.0)
        assert [r.offset for r in found] == list(range(start, min(20, start + 5)))


def test_offsets_are_found_by_time(log: Log, topic: str) -> None:
    log.append(topic, [NewRecord(key=b"k", value=b"early")] * 2)
    time.sleep(0.05)
    between_ms = time.time_ns() // 1_000_000
    time.sleep(0.05)
    log.append(topic, [NewRecord(key=b"k", value=b"late")])
    partition = choose_partition(b"k", 4)
    assert log.find_offset(topic, partition, 0) == 0
    assert log.find_offset(topic, partition, between_ms) == 2
    assert log.find_offset(topic, partition, between_ms + 3_600_000) == 3
    assert log.find_offset(topic, (partition + 1) % 4, 0) == 0


def test_retention_moves_the_beginning(log: Log, url: str, topic: str) -> None:
    partition = choose_partition(b"k", 4)
    log.append(topic, [NewRecord(key=b"k", value=b"%d" % i) for i in range(4)])
    forget_before(url, topic, partition, 2)
    assert log.bounds(topic, partition) == (2, 4)
    with pytest.raises(OffsetOutOfRange):
        log.read(topic, partition, 1, 10, 0.0)
    log.append(topic, [NewRecord(key=b"k", value=b"4")])
    assert [r.offset for r in log.read(topic, partition, 2, 10, 0.0)] == [2, 3, 4]
    assert log.find_offset(topic, partition, 0) == 2


def wait_for_shares(members: list[Membership], shares: list[int], timeout_s: float = 30.0) -> None:
    """Until the members own so many partitions each, and every partition once between them."""
    deadline = time.monotonic() + timeout_s
    while True:
        owned = [member.partitions() for member in members]
        is_whole = sorted(partition for share in owned for partition in share) == [0, 1, 2, 3]
        if is_whole and sorted(map(len, owned)) == sorted(shares):
            return
        assert time.monotonic() < deadline, owned
        time.sleep(0.05)


def test_members_of_a_group_share_the_partitions(log: Log, url: str, topic: str) -> None:
    first = log.join(topic, topic)
    wait_for_shares([first], [4])
    other = open_log(url)
    second = other.join(topic, topic)
    wait_for_shares([first, second], [2, 2])
    third = log.join(f"{topic}-other", topic)
    wait_for_shares([third], [4])
    second.leave()
    second.leave()
    wait_for_shares([first], [4])
    other.close()


def test_closing_the_log_leaves_its_groups_at_once(log: Log, url: str, topic: str) -> None:
    other = open_log(url)
    members = [log.join(topic, topic), other.join(topic, topic)]
    wait_for_shares(members, [2, 2])
    other.close()
    wait_for_shares(members[:1], [4], timeout_s=5.0)


def test_a_silent_members_partitions_are_taken_over(url: str, topic: str) -> None:
    options = LogOptions(session_timeout_s=6.0)  # the least that Kafka's brokers take
    logs = [open_log(url, options), open_log(url, options)]
    members = [own.join(topic, topic) for own in logs]
    wait_for_shares(members, [2, 2])
    silence(members[1])
    wait_for_shares(members[:1], [4])
    for own in logs:
        own.close()


def silence(member: Membership) -> None:
    """Make a member stop to say that it lives, as a process does that was killed."""
    consumer = getattr(member, "_consumer", None)  # of Kafka; a lease needs only that nobody renews it
    if consumer is not None:
        consumer._client._net.stop()


def test_a_member_publishes_offsets_for_its_group(log: Log, topic: str) -> None:
    log.append(topic, [NewRecord(key=b"k", value=b"")] * 5)
    partition = choose_partition(b"k", 4)
    wait_for_shares([log.join(topic, topic)], [4])
    log.commit(topic, topic, {partition: 3})
    assert log.committed(topic, topic) == {partition: 3}


def test_topic_keeps_its_number_of_partitions(tmp_path: Path, topic: str) -> None:
    url = f"sqlite:{tmp_path / 'log.db'}"
    first = SqliteLog(url, num_partitions=2)
    first.append(topic, [NewRecord(key=b"k", value=b"")])
    first.close()
    later = SqliteLog(url, num_partitions=8)
    assert later.partitions(topic) == [0, 1]
    later.close()


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="no log back end"):
        open_log("carrier-pigeon:coop")
