"""Checkers: what passes, what does not, and that nothing an answer says can hurt the trainer."""

import time
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from tests.trainer.tiny import make_prompt
from trainer.learn.rewards.checkers import (
    Checker,
    check_json,
    check_sql,
    list_functions,
    load_function,
    make_checkers,
    unwrap_code,
)
from trainer.sections.reward import CheckerSection
from trainer.text.pairs import Answer

SCHEMA = "CREATE TABLE tea (name TEXT, grams REAL); INSERT INTO tea VALUES ('assam', 100), ('sencha', 50);"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def count_words(messages: list, answer: str) -> float:
    """A checker of an app's own."""
    return 1.0 if len(answer.split()) == 2 and messages else 0.25


def fail(messages: list, answer: str) -> float:
    raise OSError("no such service")


def give_two(messages: list, answer: str) -> float:
    return 2.0


def check(section: CheckerSection, text: str) -> float | None:
    checker = Checker(section)
    try:
        return checker.check(make_prompt(), Answer(text=text))
    finally:
        checker.close()


@pytest.fixture
def slow_regex() -> Iterator[Checker]:
    checker = Checker(CheckerSection(name="slow", kind="regex", pattern=r"^(a+)+$", timeout_s=0.3))
    yield checker
    checker.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', 1), ("[1, 2]", 1), ('```json\n{"a": 1}\n```', 1), ("Here it is:\n```\n[]\n```", 1), ("3", 1),
        ("{'a': 1}", 0), ('{"a": 1', 0), ("NaN", 0), ("", 0), ("[" * 100_000, 0), ('{"a": 1} and more', 0),
    ],
)  # fmt: skip
def test_json_is_what_the_standard_says(text: str, expected: float) -> None:
    assert check_json(text) == expected


def test_json_may_need_keys() -> None:
    assert check_json('{"a": 1, "b": 2}', ["a", "b"]) == 1
    assert check_json('{"a": 1}', ["a", "b"]) == check_json('["a", "b"]', ["a", "b"]) == 0


def test_code_is_taken_out_of_its_fence() -> None:
    assert unwrap_code("So:\n```sql\nSELECT 1\n```\nDone.") == "SELECT 1"
    assert unwrap_code("```sql\nSELECT 1") == "SELECT 1"
    assert unwrap_code(" SELECT 1 ") == "SELECT 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT name FROM tea WHERE grams > 60", 1), ("```sql\nSELECT sum(grams) FROM tea;\n```", 1),
        ("WITH t AS (SELECT * FROM tea) SELECT count(*) FROM t", 1),
        ("SELECT colour FROM tea", 0), ("SELECT", 0), ("", 0), ("Use a SELECT statement.", 0), ("SELECT 1; SELECT 2", 0),
        ("DROP TABLE tea", 0), ("DELETE FROM tea", 0), ("INSERT INTO tea VALUES ('x', 1)", 0),
        ("ATTACH DATABASE '/tmp/other.db' AS other", 0), ("PRAGMA writable_schema = 1", 0), ("SELECT load_extension('x')", 0),
        ("SELECT zeroblob(2000000000)", 0), ("SELECT 1\x00", 0), ("SELECT '\ud800'", 0),
        ("-- nothing", 0),
    ],
)  # fmt: skip
def test_sql_passes_if_it_reads_and_runs(text: str, expected: float) -> None:
    assert check_sql(text, SCHEMA) == expected


def test_sql_that_does_not_end_is_stopped() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        check_sql(ENDLESS, timeout_s=0.2)
    assert time.monotonic() - started < 5
    checker = Checker(CheckerSection(name="sql", kind="sql", timeout_s=0.1))
    assert (checker.check(make_prompt(), Answer(text=ENDLESS)), checker.errors) == (0, {"TimeoutError": 1})


def test_a_regular_expression_is_searched() -> None:
    assert check(CheckerSection(name="it", kind="regex", pattern=r"\b\d{4}\b"), "In 1789.") == 1
    assert check(CheckerSection(name="it", kind="regex", pattern=r"\b\d{4}\b"), "Long ago.") == 0


def test_a_search_that_does_not_end_is_stopped_and_the_next_one_works(slow_regex: Checker) -> None:
    evil = Answer(text="a" * 40 + "!")
    assert slow_regex.check(make_prompt(), Answer(text="aaa")) == 1
    started = time.monotonic()
    assert slow_regex.check(make_prompt(), evil) == 0
    assert time.monotonic() - started < 5
    assert slow_regex.check(make_prompt(), Answer(text="aaa")) == 1
    assert (slow_regex.errors, slow_regex.num_checked) == ({"TimeoutError": 1}, 3)


def test_a_function_of_the_apps_own_is_called() -> None:
    section = CheckerSection(name="it", kind="python", function="tests.trainer.learn.rewards.test_checkers:count_words")
    assert check(section, "two words") == 1
    assert check(section, "three words here") == 0.25


@pytest.mark.parametrize(("name", "error"), [("fail", "OSError"), ("give_two", "ValueError")])
def test_what_a_function_does_wrong_is_counted_and_not_raised(name: str, error: str) -> None:
    checker = Checker(
        CheckerSection(name="mine", kind="python", function=f"tests.trainer.learn.rewards.test_checkers:{name}")
    )
    assert [checker.check(make_prompt(), Answer(text="x")) for _ in range(3)] == [0, 0, 0]
    assert checker.errors == {error: 3}


@pytest.mark.parametrize(
    "function", ["tests.trainer.learn.rewards.test_checkers", "no.such:thing", "json:no_such", "json:__name__"]
)
def test_a_function_that_is_none_is_refused_at_once(function: str) -> None:
    with pytest.raises((ImportError, AttributeError, ValueError)):
        load_function(function)
    with pytest.raises(ValueError):
        Checker(CheckerSection(name="mine", kind="python", function=function))


def test_settings_that_make_no_checker_are_refused() -> None:
    for section in (
        CheckerSection(name="it", kind="regex", pattern="("),
        CheckerSection(name="it", kind="sql", sql_schema="CREATE TABL"),
    ):
        with pytest.raises(ValueError, match=r"trainer\.rewards\.checkers: it"):
            Checker(section)
    with pytest.raises(ValidationError, match="needs pattern"):
        CheckerSection(name="it", kind="regex")


def test_a_checker_is_for_prompts_with_its_tags() -> None:
    checker = Checker(CheckerSection(name="json", kind="json", tags={"task": "extract"}))
    answer = Answer(text="no json")
    assert checker.check(make_prompt(tags={"task": "chat"}), answer) is None
    assert checker.check(make_prompt(tags={"task": "extract", "language": "en"}), answer) == 0
    assert checker.num_checked == 1


def test_checkers_serve_frozen_tasks_by_name() -> None:
    checkers = make_checkers(
        [CheckerSection(name="b", kind="json", tags={"task": "x"}), CheckerSection(name="a", kind="sql")]
    )
    assert [each.name for each in checkers] == ["b", "a"]
    functions = list_functions(checkers)
    assert (functions["b"]("[]"), functions["b"]("["), functions["a"]("SELECT 1")) == (1, 0, 1)
