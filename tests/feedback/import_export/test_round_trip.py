"""What is exported and imported again is the same to a reader of the log, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from feedback.errors import ImportExportError
from feedback.events import PREFERRED, Choice, Signal, decode_event, encode_event, new_event
from feedback.import_export import ROWS, Kind, append_events, make_rows, read_event
from feedback.import_export.files import describe_columns, read_rows, write_rows
from feedback.import_export.foreign import Origin
from feedback.log import Record
from feedback.scan import find_ends, find_starts, scan
from tests.feedback.import_export.strategies import choices, signals, times
from tests.feedback.samples import make_choice, make_comparison, make_record, make_signal
from tests.feedback.stores import TOPIC, consume_all, dump, make_new, opened_log, opened_store

ORIGIN = Origin("elsewhere", "import", 5000.0)


def export(log: Any, path: Path, kind: Kind, *, has_all: bool = True) -> int:
    records = scan(log, TOPIC, find_starts(log, TOPIC), find_ends(log, TOPIC))
    return write_rows(path, ROWS[kind], make_rows(records, kind, has_all=has_all))


def bring_in(log: Any, path: Path) -> int:
    return append_events(log, TOPIC, (read_event(columns, ORIGIN) for _, columns in read_rows(path)))


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.lists(st.tuples(choices | signals, times), max_size=4), st.sampled_from([".jsonl", ".parquet"]))
def test_export_import_and_consume_give_the_original_store(said: list[tuple[Choice | Signal, float]], end: str) -> None:
    with TemporaryDirectory() as name, opened_log(Path(name) / "a.db") as one, opened_log(Path(name) / "b.db") as two:
        folder = Path(name)
        for number, (data, now) in enumerate(said):
            one.append(TOPIC, [make_new(new_event(data, source="test", now=now, event_id=f"e-{number}"))])
        kinds: tuple[Kind, ...] = ("choices", "signals")
        for kind in kinds:
            num_rows = export(one, folder / f"{kind}{end}", kind)
            assert bring_in(two, folder / f"{kind}{end}") == num_rows
        with opened_store(folder / "c.db") as original, opened_store(folder / "d.db") as copy:
            consume_all(one, original)
            consume_all(two, copy)
            tables = ("preferences", "trainer_signals", "dead_letters")
            assert {name: dump(copy)[name] for name in tables} == {name: dump(original)[name] for name in tables}
            assert sum(len(dump(copy)[name]) for name in tables) == len(said)
            bring_in(two, folder / f"choices{end}")  # once more, which doubles nothing that could be read
            consume_all(two, copy)
            assert dump(copy)["preferences"] == dump(original)["preferences"]


@pytest.mark.parametrize("end", [".jsonl", ".parquet"])
def test_events_keep_their_envelopes(tmp_path: Path, end: str) -> None:
    events = [new_event(make_choice(preferred=p), source=f"from-{p}", now=1763740802.123456) for p in PREFERRED]
    events.append(new_event(make_signal(), source="app", now=1.0))
    events = [decode_event(*encode_event(event)) for event in events]
    for kind in ROWS:
        records = (to_record(number, event) for number, event in enumerate(events))
        write_rows(tmp_path / f"{kind}{end}", ROWS[kind], make_rows(records, kind, has_all=True))
    back = [read_event(row, ORIGIN) for kind in ROWS for _, row in read_rows(tmp_path / f"{kind}{end}")]
    assert back == events


def to_record(offset: int, event: Any) -> Record:
    headers, value = encode_event(event)
    return Record(
        key=b"k", value=value, headers=headers, topic="t", partition=0, offset=offset, timestamp_ms=offset
    )  # fmt: skip


def test_a_decided_choice_is_a_row_as_trl_reads_it(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    asked = [system, {"role": "user", "content": "Hi"}]
    choice = make_choice(make_comparison(messages=asked), "second")
    write_rows(tmp_path / "x.jsonl", ROWS["choices"], make_rows([make_record(0, choice)], "choices"))
    row = json.loads((tmp_path / "x.jsonl").read_text())
    assert row["prompt"] == asked
    assert row["chosen"] == [{"role": "assistant", "content": "answer two"}]
    assert row["rejected"] == [{"role": "assistant", "content": "answer one"}]
    assert row["tags"] == [{"name": "domain", "value": "demo"}]


def test_a_thumb_is_a_row_as_trl_reads_unpaired_preferences(tmp_path: Path) -> None:
    records = [make_record(0, make_signal()), make_record(1, make_signal(thumb="down")), make_record(2, make_choice())]
    assert write_rows(tmp_path / "x.jsonl", ROWS["signals"], make_rows(records, "signals")) == 2
    first, second = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    assert first["completion"] == [{"role": "assistant", "content": "Willemstad."}]
    assert (first["label"], second["label"]) == (True, False)


def test_only_what_trl_can_learn_from_is_exported_unless_all_is_asked_for() -> None:
    records = [make_record(number, make_choice(preferred=p)) for number, p in enumerate(PREFERRED)]
    records += [make_record(10, make_signal(thumb=None)), make_record(11, make_signal(answer=None))]
    assert [row.preferred for row in make_rows(records, "choices") if hasattr(row, "preferred")] == ["first", "second"]
    assert len(list(make_rows(records, "choices", has_all=True))) == 5
    assert len(list(make_rows(records, "signals"))) == 0
    assert len(list(make_rows(records, "signals", has_all=True))) == 2


def test_repeats_and_unreadable_records_are_left_out() -> None:
    good = make_record(0, make_choice())
    bad = Record(key=b"k", value=b"{", headers={}, topic="t", partition=0, offset=1, timestamp_ms=0)
    again = make_record(2, make_choice(), event_id="event-0")
    assert len(list(make_rows([good, bad, again], "choices"))) == 1


def test_a_parquet_file_has_types_that_datasets_reads(tmp_path: Path) -> None:
    """No column is of a type that Hugging Face datasets lacks, not even where every value is missing."""
    rows = make_rows([make_record(0, make_choice())], "choices")
    write_rows(tmp_path / "x.parquet", ROWS["choices"], rows)
    schema = pyarrow.parquet.read_schema(tmp_path / "x.parquet")
    assert schema.equals(describe_columns(ROWS["choices"]))
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    for name in ("prompt", "chosen", "rejected"):
        assert schema.field(name).type == pyarrow.list_(message)

    def leaves(kind: Any) -> list[Any]:
        if pyarrow.types.is_list(kind):
            return leaves(kind.value_type)
        if pyarrow.types.is_struct(kind):
            return [leaf for field in kind for leaf in leaves(field.type)]
        return [kind]

    for kind in ROWS:
        found = {str(leaf) for field in describe_columns(ROWS[kind]) for leaf in leaves(field.type)}
        assert found == {"string", "int64", "double", "bool"}


def test_what_a_user_edits_in_the_file_is_what_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_rows(path, ROWS["choices"], make_rows([make_record(0, make_choice())], "choices"))
    path.write_text(path.read_text().replace("answer one", "a better answer"))
    [(_, row)] = read_rows(path)
    data = read_event(row, ORIGIN).data
    assert isinstance(data, Choice) and data.comparison.first.text == "a better answer"


PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"chosen": None}, "chosen"),
        ({"chosen": [{"role": "user", "content": "x"}]}, "chosen"),
        ({"preferred": "tie"}, "first.text"),
        ({"preferred": "third"}, "preferred"),
        ({"event_id": ""}, "ce_id"),
        ({"event_time": 1e300}, "no reader"),
        ({"prompt_json": "{"}, "prompt_json"),
        ({"prompt_json": json.dumps(PARTS)}, "differ"),
        ({"event_type": "prefloop.choice.v9"}, "v9"),
        ({"propensity": "high"}, "propensity"),
        ({"prompt": [{"role": "user", "content": "x" * 900_000}]}, "bytes"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    write_rows(tmp_path / "x.jsonl", ROWS["choices"], make_rows([make_record(0, make_choice())], "choices"))
    [(_, row)] = read_rows(tmp_path / "x.jsonl")
    with pytest.raises(ImportExportError, match=problem):
        read_event({**row, **changes}, ORIGIN)
