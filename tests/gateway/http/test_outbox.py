"""What is written waits for the end of the loop's turn, and nothing that ends a connection overtakes it."""

import asyncio

from gateway.http.outbox import Outbox, Outlet


class Transport(asyncio.Transport):
    """Keeps what it is told, in order with others."""

    def __init__(self, name: str, said: list[str]) -> None:
        super().__init__()
        self._name, self._said = name, said
        self._is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._is_closed
        if data == b"bad":
            raise RuntimeError("no more")
        self._said.append(f"{self._name} {bytes(data).decode()}")

    def is_closing(self) -> bool:
        return self._is_closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._said.append(f"{self._name} eof")

    def close(self) -> None:
        self._is_closed = True
        self._said.append(f"{self._name} closed")

    def abort(self) -> None:
        self.close()


def open_two() -> tuple[Outlet, Outlet, list[str]]:
    """Two connections of one outbox, and what they were told."""
    said: list[str] = []
    outbox = Outbox()
    return Outlet(Transport("one", said), outbox), Outlet(Transport("two", said), outbox), said


async def test_writes_go_out_in_order_at_the_end_of_the_turn() -> None:
    one, two, said = open_two()
    one.write(b"a")
    two.write(b"b")
    one.write(b"c")
    assert said == []
    await asyncio.sleep(0)
    assert said == ["one a", "two b", "one c"]
    two.write(b"d")
    await asyncio.sleep(0)
    assert said[3:] == ["two d"]


async def test_after_four_turns_with_one_write_the_next_seven_go_out_at_once_and_then_a_turn_is_looked_at_again() -> (
    None
):
    one, two, said = open_two()
    for letter in "abcd":
        one.write(letter.encode())
        assert len(said) < ord(letter) - 96
        await asyncio.sleep(0)
    for letter in "efghijk":
        one.write(letter.encode())
    assert said == [f"one {letter}" for letter in "abcdefghijk"]
    one.write(b"l")
    two.write(b"m")
    assert len(said) == 11
    await asyncio.sleep(0)
    assert said[11:] == ["one l", "two m"]
    two.write(b"n")  # that turn had two
    assert len(said) == 13


async def test_the_end_of_a_connection_waits_for_what_was_written() -> None:
    one, two, said = open_two()
    one.write(b"a")
    one.write_eof()
    two.write(b"b")
    two.close()
    assert said == ["one a", "one eof", "two b", "two closed"]


async def test_an_answer_that_comes_after_the_end_of_its_connection_goes_nowhere() -> None:
    one, two, said = open_two()
    one.write_eof()
    one.write(b"late")
    two.write(b"b")
    await asyncio.sleep(0)
    assert said == ["one eof", "two b"]


async def test_a_connection_that_was_aborted_takes_nothing_more() -> None:
    one, two, said = open_two()
    one.write(b"a")
    two.write(b"b")
    one.abort()
    await asyncio.sleep(0)
    assert said == ["one closed", "two b"]


async def test_a_connection_that_fails_takes_no_other_with_it() -> None:
    one, two, said = open_two()
    one.write(b"bad")
    two.write(b"b")
    await asyncio.sleep(0)
    assert said == ["one closed", "two b"]
