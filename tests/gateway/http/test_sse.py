"""Events out of reads."""

import pytest

from gateway.http.sse import EventSplitter, event_data

STREAM = b'data: {"a":"\xc3\xa4"}\n\n: ping\n\ndata: 1\r\n\r\ndata: a\ndata: b\n\ndata: [DONE]\n\n'
EVENTS = [
    b'data: {"a":"\xc3\xa4"}\n\n',
    b": ping\n\n",
    b"data: 1\r\n\r\n",
    b"data: a\ndata: b\n\n",
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_events_are_the_same_however_the_stream_is_cut(size: int) -> None:
    splitter = EventSplitter()
    found = [e for i in range(0, len(STREAM), size) for e in splitter.feed(STREAM[i : i + size])]
    assert found == EVENTS
    assert splitter.rest() == b""


def test_data_lines_are_joined_and_comments_are_empty() -> None:
    assert [event_data(event) for event in EVENTS] == [b'{"a":"\xc3\xa4"}', b"", b"1", b"a\nb", b"[DONE]"]


def test_what_is_left_is_kept() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n") == []
    assert splitter.rest() == b"data: 1\n"
