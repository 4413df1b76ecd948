"""What stands between the processes of a fleet: links that can be cut, and a load balancer in front of the gateways.

A link that is cut is silent: bytes stay where they are and new connections hang, as behind a switch that lost its power.
Both pass bytes and know nothing of what they mean, but for the balancer's look at `/readyz`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import aiohttp

_PIECE = 65_536
_LOOK_S = 0.5
_LOOK_TIMEOUT = aiohttp.ClientTimeout(total=2)
_CONNECT_TIMEOUT_S = 2.0


class Link:
    """A TCP connection's middle: everything that comes to `port` goes to `target_port` of this machine, unless it is cut."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self._pipes = _Pipes()
        self.port = 0
        self.num_stopped = 0  # pieces and connections that met a cut

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self.port = await self._pipes.listen(self._serve, 0)

    async def stop(self) -> None:
        """Close every connection."""
        self._is_whole.set()
        await self._pipes.close()

    async def cut(self, seconds: float) -> None:
        """Let nothing through for so long; what was held back goes on afterwards."""
        self._is_whole.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._is_whole.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._wait()
        with contextlib.suppress(OSError):
            there = await asyncio.open_connection("127.0.0.1", self._target)
            await self._pipes.join((reader, writer), there, self._wait)

    async def _wait(self) -> None:
        if not self._is_whole.is_set():
            self.num_stopped += 1
            await self._is_whole.wait()


class Balancer:
    """Spreads connections over the gateways that say they are ready; one that refuses a connection is passed over at once."""

    def __init__(self, targets: Sequence[int]) -> None:
        self._targets = list(targets)
        self._ready: list[int] = []
        self._turn = 0
        self._pipes = _Pipes()
        self._looking: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def num_ready(self) -> int:
        """Gateways that were ready at the last look."""
        return len(self._ready)

    async def start(self, port: int = 0) -> None:
        """Listen, and look at the gateways from now on."""
        self.port = await self._pipes.listen(self._serve, port)
        self._looking = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Close every connection."""
        if self._looking is not None:
            self._looking.cancel()
        await self._pipes.close()

    async def _look(self) -> None:
        async with aiohttp.ClientSession(timeout=_LOOK_TIMEOUT) as session:
            while True:
                found = await asyncio.gather(*(is_ready(session, port) for port in self._targets))
                self._ready = [port for port, ready in zip(self._targets, found, strict=True) if ready]
                await asyncio.sleep(_LOOK_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._turn += 1
        ready = self._ready or self._targets
        for i in range(len(ready)):
            port = ready[(self._turn + i) % len(ready)]
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    there = await asyncio.open_connection("127.0.0.1", port)
            except (OSError, TimeoutError):
                continue
            await self._pipes.join((reader, writer), there)
            return


async def is_ready(session: aiohttp.ClientSession, port: int) -> bool:
    """Whether a gateway says that it can answer."""
    try:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pipes:
    """A listening port and the connections that go through it."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, serve, port: int) -> int:  # type: ignore[no-untyped-def]
        """Serve each connection by a task of its own; the port."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await serve(reader, writer)
            except (asyncio.CancelledError, ConnectionError):
                pass
            finally:
                self._tasks.discard(task)
                writer.transport.abort()

        self._server = await asyncio.start_server(accept, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def join(self, here: Ends, there: Ends, wait=None) -> None:  # type: ignore[no-untyped-def]
        """Pass bytes both ways until both sides have ended. wait: before each piece."""
        ways = [_pass_on(here[0], there[1], wait), _pass_on(there[0], here[1], wait)]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.gather(*tasks)
        except OSError:  # one side broke: so does the other
            pass
        finally:
            for task in tasks:
                task.cancel()
            for _, writer in (here, there):
                writer.transport.abort()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.sleep(0)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait) -> None:  # type: ignore[no-untyped-def]
    while data := await reader.read(_PIECE):
        if wait is not None:
            await wait()
        writer.write(data)
        await writer.drain()
    if wait is not None:
        await wait()
    if writer.can_write_eof():
        writer.write_eof()
