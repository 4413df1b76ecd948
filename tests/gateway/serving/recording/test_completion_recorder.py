"""Recording of single answers: what is noted is stored and found, what cannot be is dropped and counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.serving.recording.completion_recorder import CompletionRecorder, Record
from gateway.serving.recording.completion_store import CompletionStore
from gateway.settings import GatewaySettings

NOW = 1_800_000_000.0
REQUEST = b'{"model":"default","messages":[{"role":"user","content":"How are you?"}]}'
WHOLE = b'{"id":"chatcmpl-%s","object":"chat.completion","choices":[{"index":0,"message":{"content":"Well."}}]}'


def make_record(name: str = "1", *, at: float | None = None, **changes: Any) -> Record:
    response = changes.get("response", WHOLE % name.encode())
    return (
        time.time() if at is None else at,
        changes.get("completion_id"),
        changes.get("app", "app-1"),
        "user-1",
        "conv-1",
        "default",
        "c-000001-aaaaaaaaaaaa",
        "stable",
        changes.get("request", REQUEST),
        response,
        changes.get("is_stream", False),
    )


class Recording:
    """CompletionRecorder over a store, with what Prometheus would read."""

    def __init__(self, folder: Path, store: CompletionStore | None = None, **section: Any) -> None:
        settings = GatewaySettings.model_validate({"state_dir": folder, "gateway": section})
        self.store = store or CompletionStore(settings.completions_database)
        self.registry = CollectorRegistry()
        self.completions = CompletionRecorder(self.store, settings, self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"prefloop_completions_{name}", labels)

    def stored_ids(self) -> list[str]:
        """Ids in the order of their writing; before `close`."""
        assert self.store._engine is not None
        with self.store._engine.connect() as connection:
            return list(connection.exec_driver_sql("SELECT id FROM completions ORDER BY number").scalars())


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Callable[..., Recording]]:
    """Makes recordings that are closed when the test is over."""
    made: list[Recording] = []

    def make(**arguments: Any) -> Recording:
        made.append(Recording(tmp_path, **arguments))
        return made[-1]

    yield make
    for recording in made:
        recording.completions.close()


async def test_what_is_noted_is_found_at_once_with_its_bytes(record: Callable[..., Recording]) -> None:
    recording = record()
    recording.completions.start()
    noted = make_record("1", at=NOW, request=b'{"messages": []}\xff')
    recording.completions.note(noted)
    found = await recording.completions.find("app-1", "chatcmpl-1")
    assert found is not None
    assert (found.created_at, found.id, found.user, found.checkpoint, found.arm) == (
        NOW,
        "chatcmpl-1",
        "user-1",
        "c-000001-aaaaaaaaaaaa",
        "stable",
    )
    assert (found.request, found.response, found.is_stream) == (noted[8], noted[9], False)
    assert recording.value("recorded_total") == 1
    assert recording.value("pending") == 0


async def test_another_apps_answer_is_not_found_even_under_the_same_id(record: Callable[..., Recording]) -> None:
    recording = record()
    recording.completions.start()
    recording.completions.note(make_record("1", app="one", request=b"{}"))
    recording.completions.note(make_record("1", app="two", request=b"[]"))
    of_one, of_two = [await recording.completions.find(app, "chatcmpl-1") for app in ("one", "two")]
    assert of_one is not None and of_one.request == b"{}"
    assert of_two is not None and of_two.request == b"[]"
    assert await recording.completions.find("three", "chatcmpl-1") is None


@pytest.mark.parametrize(
    ("response", "is_stream", "found"),
    [
        (b'data: {"id":"chatcmpl-7","object":"chat.completion.chunk"}\n\ndata: [DONE]\n\n', True, "chatcmpl-7"),
        (b'event: response.created\ndata: {"response":{"id":"resp_7","object":"response"}}\n\n', True, "resp_7"),
        (b'{ "object": "text_completion", "id" : "cmpl-7" }', False, "cmpl-7"),
        (b'{"object":"list","data":[]}', False, None),
        (b'data: {"error":{"message":"EngineCore died"}}\n\n', True, None),
        (b"", False, None),
    ],
)
def test_the_id_is_found_in_the_answers_first_bytes(
    record: Callable[..., Recording], response: bytes, is_stream: bool, found: str | None
) -> None:
    recording = record()
    recording.completions.start()
    recording.completions.note(make_record(response=response, is_stream=is_stream))
    assert recording.completions.flush()
    assert recording.stored_ids() == ([] if found is None else [found])
    assert recording.value("dropped_total", reason="no_id") == (found is None)


def test_an_id_that_is_known_is_not_looked_for(record: Callable[..., Recording]) -> None:
    recording = record()
    recording.completions.start()
    recording.completions.note(make_record("1", completion_id="chatcmpl-given"))
    recording.completions.flush()
    assert recording.stored_ids() == ["chatcmpl-given"]


def test_thousands_are_stored_in_their_order_and_counted(record: Callable[..., Recording]) -> None:
    recording = record()
    for number in range(3000):
        recording.completions.note(make_record(str(number)))
    assert recording.value("pending") == 3000
    recording.completions.start()
    assert recording.completions.flush(30)
    assert recording.stored_ids() == [f"chatcmpl-{number}" for number in range(3000)]
    assert recording.value("recorded_total") == 3000


def test_what_finds_the_buffer_full_is_dropped_and_counted(record: Callable[..., Recording]) -> None:
    recording = record(completions_buffer_rows=10)
    for number in range(13):
        recording.completions.note(make_record(str(number)))
    assert recording.value("dropped_total", reason="full") == 3
    recording.completions.start()
    recording.completions.flush()
    assert recording.stored_ids() == [f"chatcmpl-{number}" for number in range(10)]
    recording.completions.note(make_record("again"))
    recording.completions.flush()
    assert recording.value("recorded_total") == 11


def test_the_buffer_is_bounded_by_bytes_and_has_room_again_once_they_are_written(
    record: Callable[..., Recording],
) -> None:
    recording = record(completions_buffer_mb=0.01)
    large = b" " * 6000
    for name in "ab":
        recording.completions.note(make_record(name, request=large))
    assert recording.value("dropped_total", reason="full") == 1
    recording.completions.start()
    for name in "cd":
        recording.completions.flush()
        recording.completions.note(make_record(name, request=large))
    recording.completions.flush()
    assert recording.stored_ids() == ["chatcmpl-a", "chatcmpl-c", "chatcmpl-d"]


def test_a_share_is_kept_and_the_rest_is_no_drop(record: Callable[..., Recording]) -> None:
    recording = record(record_share=0.5)
    for number in range(2000):
        recording.completions.note(make_record(str(number)))
    pending = recording.value("pending")
    assert pending is not None and 850 < pending < 1150  # 1000 +- 6.7 standard deviations
    assert recording.value("dropped_total", reason="full") == 0


@pytest.mark.parametrize("section", [{"record_completions": False}, {"record_share": 0.0}])
def test_nothing_is_kept_where_recording_is_off(record: Callable[..., Recording], section: dict[str, Any]) -> None:
    recording = record(**section)
    recording.completions.note(make_record())
    assert (recording.value("pending"), recording.completions.is_recording) == (0, False)


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.completions.start()
    for number in range(1000):
        recording.completions.note(make_record(str(number)))
    recording.completions.close()
    again = Recording(tmp_path)
    again.store.open()
    assert len(again.stored_ids()) == 1000
    again.store.close()


class FailingStore(CompletionStore):
    """A store that fails as often as it is told."""

    num_failures = 0

    def insert(self, rows: Any) -> int:
        if self.num_failures:
            self.num_failures -= 1
            raise OSError("disk full")
        return super().insert(rows)


def test_a_store_that_fails_is_logged_once_counted_and_used_again(
    record: Callable[..., Recording], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FailingStore(f"sqlite:{tmp_path / 'completions.db'}")
    recording = record(store=store)
    recording.completions.start()
    for number in range(3):
        store.num_failures = 2  # both attempts
        recording.completions.note(make_record(str(number)))
        assert recording.completions.flush()
    recording.completions.note(make_record("good"))
    recording.completions.flush()
    assert recording.stored_ids() == ["chatcmpl-good"]
    assert recording.value("dropped_total", reason="store") == 3
    assert [row.levelno for row in caplog.records if row.name == "gateway.completions"] == [logging.ERROR]


def test_a_batch_that_fails_half_way_leaves_nothing_behind(record: Callable[..., Recording]) -> None:
    recording = record()
    recording.completions.note(make_record("1"))
    recording.completions.note(make_record("2", app=None))
    recording.completions.start()
    recording.completions.flush()
    recording.completions.note(make_record("3"))
    recording.completions.flush()
    assert recording.stored_ids() == ["chatcmpl-3"]
    assert recording.value("dropped_total", reason="store") == 2


def test_many_large_answers_are_all_stored(record: Callable[..., Recording]) -> None:
    recording = record()
    large = [make_record(str(number), request=b"x" * 300_000) for number in range(9)]
    for noted in [*large, *(make_record(str(number)) for number in range(9, 30))]:
        recording.completions.note(noted)
    recording.completions.start()
    recording.completions.flush()
    assert recording.stored_ids() == [f"chatcmpl-{number}" for number in range(30)]


def test_a_connection_that_was_lost_costs_nothing(record: Callable[..., Recording], tmp_path: Path) -> None:
    store = FailingStore(f"sqlite:{tmp_path / 'completions.db'}")
    recording = record(store=store)
    recording.completions.start()
    store.num_failures = 1
    recording.completions.note(make_record("1"))
    recording.completions.flush()
    assert recording.stored_ids() == ["chatcmpl-1"]


def test_a_store_that_cannot_be_opened_only_counts(record: Callable[..., Recording], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    recording = record(store=CompletionStore(f"sqlite:{tmp_path / 'file' / 'completions.db'}"))
    recording.completions.start()
    recording.completions.note(make_record())
    assert recording.completions.flush()
    assert recording.value("dropped_total", reason="store") == 1


def fill(store: CompletionStore, num_rows: int, *, at: float, size: int = 1000) -> None:
    store.open()
    body = b"x" * size
    store.insert((at, f"{at}-{i}", "app", "u", "c", "p", "cp", "stable", b"{}", body, False) for i in range(num_rows))


def test_answers_older_than_the_limit_are_deleted(record: Callable[..., Recording]) -> None:
    recording = record(completions_keep_hours=1.0)
    fill(recording.store, 1200, at=time.time() - 3700)
    fill(recording.store, 5, at=time.time() - 3500)
    recording.completions.start()
    deadline = time.monotonic() + 10
    while len(recording.stored_ids()) > 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(recording.stored_ids()) == 5


def test_the_oldest_go_where_answers_take_too_much_room(record: Callable[..., Recording]) -> None:
    recording = record(completions_max_mb=1.0)
    fill(recording.store, 1000, at=NOW)
    fill(recording.store, 1000, at=NOW + 1)
    assert recording.store.count_excess(1e6) > 900  # rows take a little more than their bodies
    recording.completions.start()
    deadline = time.monotonic() + 60
    while len(left := recording.stored_ids()) >= 1000 and time.monotonic() < deadline:
        recording.completions.flush()
    assert 500 < len(left) < 1000
    assert {name.partition("-")[0] for name in left} == {str(NOW + 1)}


def test_deleting_goes_in_small_steps_and_ends_where_nothing_is_left(record: Callable[..., Recording]) -> None:
    store = record().store
    fill(store, 700, at=NOW)
    assert [store.delete_oldest(0, NOW + 1) for _ in range(3)] == [500, 200, 0]
    assert store.delete_oldest(10, NOW) == 0
    assert store.count_excess(0.0) == 0


def test_an_id_is_found_by_the_index_in_whichever_run_its_row_lies(record: Callable[..., Recording]) -> None:
    store = record().store
    fill(store, 1, at=NOW)
    assert store._engine is not None
    with store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE completions SET number = 100000")
    fill(store, 1, at=NOW + 1)
    for at in (NOW, NOW + 1):
        found = store.find("app", f"{at}-0")
        assert found is not None and found.created_at == at
    with store._engine.connect() as connection:
        query = "EXPLAIN QUERY PLAN SELECT * FROM completions WHERE (number >> 14) IN (5, 6) AND id = 'x' AND app = 'y'"
        assert "USING INDEX completions_by_id (<expr>=? AND id=?)" in str(connection.exec_driver_sql(query).all())


def test_the_file_is_apart_from_the_gateways_and_takes_no_fsync_a_batch(record: Callable[..., Recording]) -> None:
    store = record().store
    store.open()
    cursor = store._connection.cursor()
    assert [cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")] == ["wal", 1]
    settings = GatewaySettings.model_validate({"gateway": {"database_url": "postgresql+psycopg://db/prefloop"}})
    assert settings.completions_database == "postgresql+psycopg://db/prefloop"
