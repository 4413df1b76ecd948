"""The first words of an answer, from its bytes: what the sensor of refusals reads.

Lenient, and cheap enough for a user's first request alone. Reasoning, tool calls and what another choice says are not told apart from
nothing: an answer without text has no opening.
"""

from __future__ import annotations

import re

import msgspec

NUM_CHARACTERS = 300
NUM_BYTES = (
    8192  # of the answer that are looked at; in a stream every few characters have an envelope of some hundred bytes
)
_TEXT = re.compile(rb'"(?:content|text|delta)"\s*:\s*"((?:[^"\\]|\\.)*)')


def read_opening(start: bytes) -> str | None:
    """The first 300 characters of text in the start of an answer, whole or streamed; None if there are none."""
    text = ""
    for found in _TEXT.finditer(start):
        try:
            text += msgspec.json.decode(b'"' + found[1] + b'"', type=str)
        except ValueError:  # cut off in the middle of an escape or a character
            break
        if len(text) >= NUM_CHARACTERS:
            break
    return text[:NUM_CHARACTERS] or None
