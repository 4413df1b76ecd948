"""Reads rows of files of demonstrations: `messages` and an ideal `answer`, with `tags`, `tools` and `chat_template_kwargs`
where they have them.

The same row gives the same id, so importing it again doubles nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from feedback.demonstrations import new_demonstration
from feedback.errors import ImportExportError
from feedback.events import Event
from feedback.import_export.foreign import SOURCE, Origin


class DemonstrationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of such a file; other columns are ignored."""

    messages: list[dict[str, Any]]
    answer: str
    tags: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def is_demonstration(columns: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of a demonstration and not those of a choice."""
    return "messages" in columns and "answer" in columns and "chosen" not in columns


def read_demonstration(columns: Mapping[str, Any], origin: Origin) -> Event:
    """The demonstration that a row stands for. Raises ImportExportError."""
    try:
        row = msgspec.convert(dict(columns), DemonstrationRow)
    except msgspec.ValidationError as error:
        raise ImportExportError(str(error)) from None
    problem = find_problem(row.messages, row.answer)
    if problem:
        raise ImportExportError(problem)
    return new_demonstration(
        row.messages,
        row.answer,
        channel=SOURCE,
        now=origin.now,
        policy=origin.policy,
        app=origin.app,
        tags=row.tags or {},
        tools=row.tools,
        chat_template_kwargs=row.chat_template_kwargs,
    )


def find_problem(messages: list[dict[str, Any]], answer: str) -> str | None:
    """Why nothing could be learnt from a demonstration, in words; None if something can."""
    if not messages or not all(isinstance(message.get("role"), str) for message in messages):
        return "`messages` must be a list of messages, each with a role"
    if not answer.strip():
        return "`answer` is empty"
    return None
