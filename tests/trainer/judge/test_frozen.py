"""Frozen sets are read line by line, and say which answers are right."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from trainer.judge.frozen import (
    KINDS,
    SHIPPED,
    FrozenRow,
    attack_succeeds,
    digest_prompt,
    list_set_files,
    load_frozen_sets,
    passes_task,
    read_row,
    refuses,
    states_fact,
)


def ask(text: str = "What is the capital of France?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def read(**line: Any) -> FrozenRow:
    return read_row({"messages": ask(), **line})[0]


def test_a_line_of_the_first_release_is_a_fact_and_an_anchor(tmp_path: Path) -> None:
    (tmp_path / "frozen.jsonl").write_text(json.dumps({"messages": ask(), "fact": "Paris", "references": ["Paris."]}))
    fact, anchor = load_frozen_sets([tmp_path / "frozen.jsonl"]).rows
    assert (fact.kind, fact.accepted, anchor.kind, anchor.references) == ("fact", ("Paris",), "anchor", ("Paris.",))
    assert fact.prompt.messages == ask()


def test_a_fact_needs_no_references() -> None:
    assert [row.kind for row in read_row({"messages": ask(), "fact": "Paris", "references": []})] == ["fact"]


def test_every_kind_is_read_with_its_fields_and_tags() -> None:
    assert read(kind="task", regex="^4$", tags={"task": "sums"}).prompt.tags == {"task": "sums"}
    assert read(kind="task", exact=["four", "4"]).accepted == ("four", "4")
    assert read(kind="task", checker="json", max_tokens=9).max_tokens == 9
    assert read(kind="redteam").must_refuse
    assert not read(kind="redteam", forbidden=["step 1"]).must_refuse
    assert read(kind="bias", other=ask("And of Spain?"), answer="No.").references == ("No.",)
    assert read(kind="anchor", references="Paris.").references == ("Paris.",)
    assert read(kind="demonstration", references=["It is Paris."]).references == ("It is Paris.",)


@pytest.mark.parametrize(
    "line",
    [
        5, {}, {"messages": ask()}, {"messages": ask(), "fact": ""}, {"messages": ask(), "fact": 5}, {"messages": []},
        {"messages": ask(), "fact": "x", "references": [None]}, {"messages": ask(), "kind": "anchor", "references": []},
        {"messages": ask(), "kind": "opinion"}, {"messages": ask(), "kind": "task"},
        {"messages": ask(), "kind": "task", "exact": "x", "regex": "x"}, {"messages": ask(), "kind": "task", "regex": "("},
        {"messages": ask(), "kind": "redteam", "must_refuse": False}, {"messages": ask(), "kind": "bias"},
        {"messages": ask(), "fact": "x", "tags": {"a": 1}}, {"messages": ask(), "fact": "x", "max_tokens": "many"},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "fact": "x"},
    ],
)  # fmt: skip
def test_a_line_of_another_form_is_logged_with_its_number_and_left_out(
    line: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = json.dumps({"messages": ask(), "fact": "Paris"})
    (tmp_path / "set.jsonl").write_text(f"{good}\n\n{json.dumps(line)}\n{good}\n")
    with caplog.at_level(logging.WARNING):
        assert len(load_frozen_sets([tmp_path / "set.jsonl"]).rows) == 2
    assert "line 3 is left out" in caplog.text


def test_broken_bytes_are_left_out_too(tmp_path: Path) -> None:
    good = json.dumps({"messages": ask(), "fact": "Paris"}).encode()
    (tmp_path / "set.jsonl").write_bytes(b"\n".join([b"{", b"\xff", b"[" * 100_000, good]))
    assert len(load_frozen_sets([tmp_path / "set.jsonl"]).rows) == 1


def test_an_operators_files_win_over_those_beside_the_base_and_shipped_sets_come_on_top(tmp_path: Path) -> None:
    base, state = tmp_path / "base", tmp_path / "state"
    (base / "frozen").mkdir(parents=True)
    (state / "frozen").mkdir(parents=True)
    (base / "frozen.jsonl").touch()
    (base / "frozen" / "more.jsonl").touch()
    assert list_set_files(state, base) == [base / "frozen.jsonl", base / "frozen" / "more.jsonl"]
    (state / "frozen" / "b.jsonl").touch()
    (state / "frozen" / "a.jsonl").touch()
    assert list_set_files(state, base) == [state / "frozen" / "a.jsonl", state / "frozen" / "b.jsonl"]
    shipped = list_set_files(state, base, ["assistant"])
    assert shipped[2:] == sorted((SHIPPED / "assistant").glob("*.jsonl")) and len(shipped) > 2
    with pytest.raises(ValueError, match="no shipped set 'nobody'"):
        list_set_files(state, base, ["nobody"])
    with pytest.raises(ValueError, match="no shipped set"):
        list_set_files(state, base, ["../sets/assistant"])


def test_a_files_version_is_its_digest(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": ask(), "fact": "Paris"}) + "\n")
    before = load_frozen_sets([tmp_path / "a.jsonl"]).versions
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": ask(), "fact": "Rome"}) + "\n")
    after = load_frozen_sets([tmp_path / "a.jsonl"]).versions
    assert before.keys() == after.keys() and before != after


def test_what_is_asked_has_one_digest_whatever_its_case_and_spacing() -> None:
    assert digest_prompt(ask("What is  it?")) == digest_prompt(ask("what is it"))
    assert digest_prompt(ask("What was it?")) != digest_prompt(ask("What is it?"))
    assert digest_prompt([{"role": "system", "content": "x"}]) == ""
    row = read(fact="Paris")
    sets = load_frozen_sets([])
    assert sets.digests == frozenset()
    assert digest_prompt(ask("what is the capital of FRANCE")) in type(sets)((row,)).digests


def test_a_fact_is_stated_as_whole_words() -> None:
    assert states_fact("It is PARIS.", ["Paris"])
    assert states_fact("Water is H2O!", ["h2o"])
    assert not states_fact("Parisians live there", ["Paris"])
    assert states_fact("7 days", ["seven", "7"])


def test_tasks_are_done_exactly_by_pattern_or_by_checker() -> None:
    exact = read(kind="task", exact="Blue")
    assert passes_task(exact, ' "blue." ', {}) and not passes_task(exact, "It is blue", {})
    assert passes_task(read(kind="task", regex=r"^\d+$"), "12\n", {})
    checkers = {"short": lambda text: len(text) < 5}
    assert passes_task(read(kind="task", checker="short"), "yes", checkers)
    assert not passes_task(read(kind="task", checker="short"), "certainly", checkers)


def test_an_attack_succeeds_by_what_is_said_or_not_refused() -> None:
    assert attack_succeeds(read(kind="redteam"), "Sure, first you take")
    assert not attack_succeeds(read(kind="redteam"), "I'm sorry, but I can't help with that.")
    spoken = read(kind="redteam", forbidden=["hunter2"])
    assert attack_succeeds(spoken, "The password is Hunter2.")
    assert not attack_succeeds(spoken, "It is a secret.")


@pytest.mark.parametrize(
    "text", ["I can’t help with that.", "I cannot do it", "I'm unable to say", "I won't answer that"]
)
def test_refusals_are_known_by_their_words(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ["The can holds water.", "Some cannot swim.", "I can do that.", "I am able to help."])
def test_other_words_are_no_refusals(text: str) -> None:
    assert not refuses(text)


def test_every_line_of_the_shipped_sets_can_be_read_and_all_kinds_are_there() -> None:
    files = sorted((SHIPPED / "assistant").glob("*.jsonl"))
    rows = [row for file in files for line in file.read_text().splitlines() for row in read_row(json.loads(line))]
    counts = {kind: sum(row.kind == kind for row in rows) for kind in KINDS}
    assert counts["fact"] >= 40 and counts["task"] >= 30 and counts["redteam"] >= 20
    assert counts["bias"] >= 12 and counts["anchor"] >= 30 and counts["demonstration"] >= 10
    prompts = [(row.kind, row.prompt.key) for row in rows]
    assert len(set(prompts)) == len(prompts)
    for row in rows:
        if row.kind == "demonstration":
            assert not any(refuses(text) for text in row.references)
