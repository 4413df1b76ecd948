"""One HTTP/1.1 connection to a gateway, for requests that are sent well, badly, or not to their end."""

import asyncio
import json
from typing import Any


class Client:
    """Connects when it must; `abort` leaves as a client that crashed does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, key: str, body: dict[str, Any], *headers: str) -> tuple[int, bytes]:
        """Send JSON and read the whole answer: status and body. Raises ConnectionError, IncompleteReadError."""
        await self.send(build_request(path, key, json.dumps(body, separators=(",", ":")).encode(), *headers))
        return await self.read_answer()

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(data)
        await self._writer.drain()

    async def read_answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        assert self._reader is not None and self._writer is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b"\r\ntransfer-encoding: chunked\r\n" in head:
            body = b"".join([piece async for piece in self._read_chunks()])
        else:
            body = await self._reader.readexactly(int(head.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0]))
        if b"\r\nconnection: close\r\n" in head:
            self._writer.close()
        return int(head[9:12]), body

    async def read_some(self, num_bytes: int) -> None:
        """Read up to that much of an answer, as far as it has come, and leave the rest."""
        assert self._reader is not None
        await self._reader.read(num_bytes)

    def abort(self) -> None:
        """Reset the connection."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def _read_chunks(self) -> Any:
        assert self._reader is not None
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)


def build_request(path: str, key: str, body: bytes, *headers: str) -> bytes:
    """A POST as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", *headers]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body
