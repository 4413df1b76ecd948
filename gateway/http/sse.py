"""Server-sent events as bytes: splitting a stream into whole events, and reading their data.

Events may be split anywhere across reads, also inside a character or the blank line. Keeps the bytes of an event as
they came. Does not know what the events mean.
"""

from typing import Any

import msgspec

MAX_EVENT_BYTES = 16_000_000
DONE = b"data: [DONE]\n\n"


class EventSplitter:
    """Collects reads and gives back whole events, each with its final blank line."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are complete now. Raises ValueError if one grows past MAX_EVENT_BYTES."""
        data = self._pending + chunk
        events: list[bytes] = []
        start = 0
        while True:
            end = _end_of_event(data, start)
            if end < 0:
                break
            events.append(data[start:end])
            start = end
        self._pending = data[start:]
        if len(self._pending) > MAX_EVENT_BYTES:
            raise ValueError("an event of the stream is too large")
        return events

    def rest(self) -> bytes:
        """What is left at the end of the stream: empty, or an event without its blank line."""
        return self._pending


class EventTail:
    """Cuts a stream after the last whole event of every read; keeps what is left for the next."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """The events that are complete now, in one piece. Raises ValueError if one grows past MAX_EVENT_BYTES."""
        data = self.rest + chunk if self.rest else chunk
        if data.endswith(b"\n\n"):
            self.rest = b""
            return data
        plain, carriage = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
        end = max(plain + 2 if plain >= 0 else 0, carriage + 4 if carriage >= 0 else 0)
        self.rest = data[end:]
        if len(self.rest) > MAX_EVENT_BYTES:
            raise ValueError("an event of the stream is too large")
        return data[:end]


def event_data(event: bytes) -> bytes:
    """The data of an event, its lines joined; empty for comments."""
    lines = event.replace(b"\r\n", b"\n").split(b"\n")
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def encode_event(data: dict[str, Any] | bytes) -> bytes:
    """An event with `data` as JSON."""
    return b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"


def _end_of_event(data: bytes, start: int) -> int:
    plain = data.find(b"\n\n", start)
    carriage = data.find(b"\r\n\r\n", start)
    if plain >= 0 and (carriage < 0 or plain < carriage):
        return plain + 2
    return carriage + 4 if carriage >= 0 else -1
