"""Tool calls behind an answer's text, as candidates, signals and the scorer's requests have them in one string.

Two answers are told apart by that string: what is said, then the calls as JSON. No model wrote the JSON, so learning takes it off
again and has the calls by themselves. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


def append_tool_calls(text: str, calls: Sequence[dict[str, Any]] | None) -> str:
    """The text followed by the calls as JSON; the text alone where there are none."""
    return text + msgspec.json.encode(calls).decode() if calls else text


def strip_tool_calls(text: str, calls: Sequence[dict[str, Any]] | None) -> str:
    """The text alone, whether or not these calls follow it."""
    return text.removesuffix(append_tool_calls("", calls))
