"""Checks that a program can make of an answer: valid JSON, SQL that runs, a regular expression, or a function of the app's own.

Each gives 0 (fails) to 1 (passes). What a checker raises, or takes too long for, counts as an error and is 0; nothing is raised.
A Python checker runs in this process and must be trusted: it is named in the settings, never by a request.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence

from trainer.learn.rewards.regex_worker import RegexWorker
from trainer.sections.reward import CheckerSection
from trainer.text.pairs import Answer, Prompt

log = logging.getLogger("trainer.learn.checkers")

Check = Callable[[Prompt, str], float]
_FENCE = re.compile(r"```[a-zA-Z0-9_+-]*\n(.*?)(?:```|\Z)", re.DOTALL)
MAX_SQL_ROWS = 1000
_READS = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)  # fmt: skip


def unwrap_code(text: str) -> str:
    """The first fenced block's content, or the text itself."""
    found = _FENCE.search(text)
    return (found.group(1) if found else text).strip()


def check_json(text: str, required: Sequence[str] = ()) -> float:
    """1 if the answer is JSON as RFC 8259 has it (NaN is not), with these keys at its top if there are any."""
    try:
        value = json.loads(unwrap_code(text), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return 0.0
    return float(not required or (isinstance(value, dict) and all(key in value for key in required)))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def check_sql(text: str, schema: str = "", timeout_s: float = 1.0) -> float:
    """1 if the answer is one SQL statement that only reads, and runs in an SQLite database in memory made by `schema`.

    Raises sqlite3.Error if the schema itself does not run, TimeoutError if the statement takes too long.
    """
    connection = sqlite3.connect(":memory:")
    deadline = time.monotonic() + timeout_s
    try:
        connection.executescript(schema)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
        try:
            cursor = connection.execute(unwrap_code(text))
            is_query = cursor.description is not None  # a comment alone runs too
            for _, _row in zip(range(MAX_SQL_ROWS), cursor, strict=False):
                pass
        except (sqlite3.Error, sqlite3.Warning, ValueError):  # ValueError: a NUL or a lone surrogate
            if time.monotonic() > deadline:
                raise TimeoutError(f"the statement runs for more than {timeout_s:g} s") from None
            return 0.0
        return float(is_query)
    finally:
        connection.close()


def load_function(entry_point: str) -> Check:
    """The function that `package.module:function` names; it takes (messages, answer) and returns 0 to 1, or a bool.

    Raises ImportError, AttributeError or ValueError.
    """
    module, _, name = entry_point.partition(":")
    if not module or not name:
        raise ValueError(f"{entry_point!r} is no package.module:function")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise ValueError(f"{entry_point} is no function")
    return lambda prompt, text: float(function(prompt.messages, text))


class Checker:
    """One check of the settings. errors counts what it raised, by the error's type; num_checked what it judged."""

    def __init__(self, section: CheckerSection) -> None:
        """Raises ValueError if the settings do not make a checker."""
        self.name, self.section = section.name, section
        self.errors: Counter[str] = Counter()
        self.num_checked = 0
        self._worker: RegexWorker | None = None
        try:
            self._check = self._make()
        except (re.error, ImportError, AttributeError, sqlite3.Error) as error:
            raise ValueError(f"trainer.rewards.checkers: {self.name}: {error}") from error

    def _make(self) -> Check:
        section = self.section
        if section.kind == "json":
            return lambda _, text: check_json(text, section.required)
        if section.kind == "sql":
            check_sql("SELECT 1", section.sql_schema, section.timeout_s)
            return lambda _, text: check_sql(text, section.sql_schema, section.timeout_s)
        if section.kind == "regex":
            worker = self._worker = RegexWorker(section.pattern, section.timeout_s)
            return lambda _, text: worker.search(text)
        return load_function(section.function)

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has the tags that the checker is for."""
        return all(prompt.tags.get(name) == value for name, value in self.section.tags.items())

    def check(self, prompt: Prompt, answer: Answer) -> float | None:
        """0 to 1; None where the checker is not for such prompts. Never raises."""
        return self.check_text(prompt, answer.text) if self.applies_to(prompt) else None

    def check_text(self, prompt: Prompt, text: str) -> float:
        """0 to 1, whatever the prompt's tags. Never raises."""
        self.num_checked += 1
        try:
            value = self._check(prompt, text)
            if not 0 <= value <= 1:
                raise ValueError(f"the checker gave {value}, not 0 to 1")
        except Exception as error:  # whatever an app's own code raises
            kind = type(error).__name__
            self.errors[kind] += 1
            if self.errors[kind] == 1:
                log.warning("checker %s: %s: %s", self.name, kind, error)
            return 0.0
        return value

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


def list_functions(checkers: Sequence[Checker]) -> dict[str, Callable[[str], float]]:
    """The checkers as functions of an answer's text alone, by name: what frozen tasks are judged by."""
    blank = Prompt(messages=[])

    def bind(checker: Checker) -> Callable[[str], float]:
        return lambda text: checker.check_text(blank, text)

    return {checker.name: bind(checker) for checker in checkers}


def make_checkers(sections: Sequence[CheckerSection]) -> list[Checker]:
    """The checkers of the settings. Raises ValueError for one that cannot be made."""
    return [Checker(section) for section in sections]
