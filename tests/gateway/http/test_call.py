"""A call on a connection whose client does not read."""

from types import SimpleNamespace
from typing import cast

from gateway.http.call import Call
from gateway.http.protocol import ServingProtocol


async def handle(call: Call) -> None:
    raise AssertionError("it is not asked")


def test_a_stream_behind_an_answer_that_nobody_reads_waits_from_its_first_bytes() -> None:
    written: list[bytes] = []
    protocol = SimpleNamespace(
        flow=SimpleNamespace(write_paused=True),
        default_lines=b"",
        transport=SimpleNamespace(write=written.append, is_closing=lambda: False),
    )
    call = Call(cast(ServingProtocol, protocol), handle, [])
    pauses: list[int] = []
    call.on_pause = lambda: pauses.append(len(written))
    call.start()
    for _ in range(3):
        call.write(b"data: x\n\n")
    assert pauses == [1]
    assert b"".join(written).count(b"data: x\n\n") == 3
