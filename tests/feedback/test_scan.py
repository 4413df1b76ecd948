"""Reading the whole topic: where to begin, in which order, and never past what is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from feedback.errors import LogUnavailable
from feedback.events import new_event
from feedback.log.sqlite import SqliteLog
from feedback.scan import find_ends, find_last, find_starts, follow, scan
from tests.feedback.samples import make_choice, make_comparison
from tests.feedback.stores import TOPIC, make_new


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteLog]:
    """Ten records, one a second from second 100 on."""
    log = SqliteLog(f"sqlite:{tmp_path / 'log.db'}")
    for number in range(10):
        monkeypatch.setattr("feedback.log.sqlite.time.time_ns", lambda number=number: (100 + number) * 10**9)
        append(log, f"cmp-{number}")
    yield log
    log.close()


def append(log: SqliteLog, comparison_id: str) -> None:
    choice = make_choice(make_comparison(comparison_id))
    log.append(TOPIC, [make_new(new_event(choice, source="test", now=1.0, event_id=f"e-{comparison_id}"))])


def keys(records: Any) -> list[str]:
    return [record.key.decode() for record in records]


def test_all_partitions_are_read_in_the_order_of_appending(log: SqliteLog) -> None:
    assert keys(scan(log, TOPIC, find_starts(log, TOPIC), find_ends(log, TOPIC))) == [f"cmp-{i}" for i in range(10)]
    assert len([end for end in find_ends(log, TOPIC).values() if end]) > 1  # or the order would say nothing


def test_what_was_appended_since_a_time_is_found(log: SqliteLog) -> None:
    for since_s, expected in ((0.0, 0), (104.0, 4), (104.0005, 4), (104.001, 5), (109.0, 9), (500.0, 10)):
        found = keys(scan(log, TOPIC, find_starts(log, TOPIC, since_s=since_s), find_ends(log, TOPIC)))
        assert found == [f"cmp-{i}" for i in range(expected, 10)], since_s


def test_an_offset_is_found_by_time_behind_what_retention_took(log: SqliteLog) -> None:
    partition, end = max(find_ends(log, TOPIC).items(), key=lambda item: item[1])
    log.delete_before(TOPIC, partition, 1)
    assert log.find_offset(TOPIC, partition, 0) == 1
    assert log.find_offset(TOPIC, partition, 10**9) == end
    assert find_starts(log, TOPIC, offset=0)[partition] == 1
    assert find_starts(log, TOPIC, offset=10**6) == find_ends(log, TOPIC)


def test_the_last_records_are_among_those_read(log: SqliteLog) -> None:
    found = keys(scan(log, TOPIC, find_last(log, TOPIC, 3), find_ends(log, TOPIC)))
    assert found[-3:] == ["cmp-7", "cmp-8", "cmp-9"]


def test_a_scan_ends_where_it_was_told_to(log: SqliteLog) -> None:
    ends = find_ends(log, TOPIC)
    append(log, "cmp-late")
    assert "cmp-late" not in keys(scan(log, TOPIC, find_starts(log, TOPIC), ends))


def test_following_goes_on_with_what_comes_in(log: SqliteLog) -> None:
    records = follow(log, TOPIC, find_ends(log, TOPIC), poll_s=0.01)
    append(log, "cmp-10")
    assert keys(islice(records, 1)) == ["cmp-10"]
    append(log, "cmp-11")
    append(log, "cmp-12")
    assert keys(islice(records, 2)) == ["cmp-11", "cmp-12"]


def test_a_log_that_does_not_give_what_it_has_is_no_end(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.scan._WAIT_S", 0.0)
    ends = {partition: end + 1 for partition, end in find_ends(log, TOPIC).items()}
    with pytest.raises(LogUnavailable, match="nothing came from offset"):
        list(scan(log, TOPIC, find_starts(log, TOPIC), ends))
