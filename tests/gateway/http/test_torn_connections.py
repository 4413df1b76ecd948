"""Bytes that no well-meaning client sends, cut and aborted anywhere: afterwards nothing is in flight, open or left over."""

import asyncio
import contextlib
import json
import logging
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from conftest import QUESTION, Running, run_gateway, start_engine, wait_until
from engine import FakeEngine
from whole_engine import WholeEngine

SEEDS = range(3)  # some 20 s each on two cores
ROUNDS, CONNECTIONS = 12, 12  # of each seed: about half a minute in all on two cores
PATHS = ["/v1/chat/completions"] * 6 + ["/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize"]
OTHERS = [
    "/v1/comparisons/cmp_1/choice",
    "/v1/completions/c/signal",
    "/operator/v1/rollouts",
    "/playground/chat",
    "/console/session",
    "/nowhere",
]
HARMLESS = [
    *["X-Prefloop-Compare: always"] * 3,
    "X-Prefloop-User: \xff\x80\t",
    "Connection: close",
    "Connection: Upgrade\r\nUpgrade: h2c",
    "Expect: 100-continue",
]
HOSTILE = [
    "X-Request-Id: a\r\nSet-Cookie: a=b",
    "X-Request-Id: a\x00b",
    "X-Folded: a\r\n b",
    "Content-Length: 3",
    "Transfer-Encoding: gzip, chunked",
    "Sec-Fetch-Site: cross-site",
    "No colon at all",
]
TIMES = {
    "body_timeout_s": 0.5,
    "connect_wait_s": 0.5,
    "first_byte_timeout_s": 1.0,
    "answer_timeout_s": 1.0,
    "idle_timeout_s": 1.0,
}


class Tearer:
    """Makes what torn connections send; everything follows from the seed."""

    def __init__(self, seed: int, keys: list[str]) -> None:
        self.rng = random.Random(seed)
        self._keys = keys

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def make_pipeline(self) -> bytes:
        data = b"".join(self.make_request() for _ in range(self.rng.choice([1] * 8 + [2, 3, 5, 40])))
        if self.chance(0.15):
            data = self.damage(data)
        return data[: self.rng.randrange(len(data) + 1)] if self.chance(0.2) else data

    def make_request(self) -> bytes:
        rng = self.rng
        if self.chance(0.1):
            return b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
        method = "POST" if self.chance(0.97) else rng.choice(["PUT", "HEAD", "CONNECT"])
        version = "1.1" if self.chance(0.95) else "1.0"
        lines = [f"{method} {rng.choice(PATHS if self.chance(0.9) else OTHERS)} HTTP/{version}", "Host: x"]
        lines.append(f"Authorization: Bearer {rng.choice(self._keys) if self.chance(0.95) else 'pl_no_no'}")
        lines += [line for line in HARMLESS if self.chance(0.15)]
        if self.chance(0.1):
            lines.append(rng.choice([*HOSTILE, "X-Huge: " + "y" * rng.choice([70_000, 400_000])]))
        body = self.make_body()
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n"
        if self.chance(0.3):
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + self.chunk(body)
        length = len(body) + (rng.choice([-1, 1, 1000, 99_999_999]) if self.chance(0.05) else 0)
        return head + b"Content-Length: %d\r\n\r\n" % length + body

    def make_body(self) -> bytes:
        rng = self.rng
        if self.chance(0.7):
            return json.dumps(
                {**QUESTION, "stream": self.chance(0.5), "pad": "x" * rng.choice([0, 0, 100_000])}
            ).encode()
        if self.chance(0.5):
            return json.dumps({name: self._make_value(0) for name in ("model", "messages", "stream", "x")}).encode()
        return rng.randbytes(rng.choice([0, 1, 100, 30_000]))

    def _make_value(self, depth: int) -> Any:
        rng = self.rng
        if depth > 3 or self.chance(0.5):
            return rng.choice([None, True, "default", "model", "\ud800", 1, -0.5, 1e300, [], {}])
        if self.chance(0.5):
            return [self._make_value(depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice(["model", "role", "content", "image_url"]): self._make_value(depth + 1)}

    def chunk(self, body: bytes) -> bytes:
        pieces = []
        while body:
            size = self.rng.randrange(1, len(body) + 1)
            pieces.append(b"%x%b\r\n%b\r\n" % (size, b";a=b" if self.chance(0.1) else b"", body[:size]))
            body = body[size:]
        end = self.rng.choice(
            [b"0\r\n\r\n"] * 8
            + [b"0\r\nTrailer: x\r\n\r\n", b"0\r\nAuthorization: x\r\n\r\n", b"", b"-1\r\n", b"zz\r\n"]
        )
        return b"".join(pieces) + end

    def damage(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(self.rng.randrange(1, 4)):
            at = self.rng.randrange(len(damaged))
            damaged[at : at + self.rng.randrange(3)] = self.rng.choice(
                [b"", b"\r\n", b"\x00", b"\n", b" ", b"\r", b"{", b"\xff"]
            )
        return bytes(damaged)

    def split(self, data: bytes) -> Iterator[bytes]:
        while data:
            size = self.rng.choice([1, 2, 7, 100, 10_000, max(1, len(data) // 2), len(data)])
            yield data[:size]
            data = data[size:]

    def upset(self, engine: FakeEngine) -> None:
        """What the engine does in the next round."""
        rng = self.rng
        engine.delay_s = rng.choice([0.0, 0.0, 0.0, 0.02, 0.02, 5.0])
        engine.num_500, engine.num_dropped = rng.choice([0, 0, 3]), rng.choice([0, 0, 3])
        engine.break_after = rng.choice([None, None, 0, 2])
        engine.split_bytes = rng.choice([None, None, 5])
        engine.num_words = rng.choice([None, None, 3000])
        engine.same_text = self.chance(0.3)

    def calm(self, engine: FakeEngine) -> None:
        """It behaves again."""
        engine.delay_s, engine.num_500, engine.num_dropped = 0.0, 0, 0
        engine.break_after = engine.split_bytes = engine.num_words = None


async def tear(tearer: Tearer, port: int) -> None:
    """One connection: sends, reads some of what comes or nothing, and ends in some way."""
    rng = tearer.rng
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(OSError):  # half-closing what the server has reset is not a ConnectionError
        for piece in tearer.split(tearer.make_pipeline()):
            if writer.is_closing():
                break
            writer.write(piece)
            if tearer.chance(0.2):
                await asyncio.sleep(rng.choice([0, 0.001, 0.01]))
        end = rng.choice(["abort at once", "abort", "abort", "close", "half-close", "read", "read", "read", "read"])
        if end == "half-close" and not writer.is_closing():
            writer.write_eof()
        if end != "abort at once":
            patience_s = 1.5 if end == "read" else rng.choice([0.01, 0.1, 0.3])
            for _ in range(1000 if end == "read" else rng.choice([0, 1, 10])):
                if not await asyncio.wait_for(reader.read(rng.choice([1, 100, 65_536])), patience_s):
                    break
        if end.startswith("abort"):
            writer.transport.abort()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def serve(folder: Path, num_engines: int) -> AsyncIterator[tuple[Running, list[FakeEngine]]]:
    engines: list[FakeEngine] = [WholeEngine() for _ in range(num_engines)]
    started = [await start_engine(engine) for engine in engines]
    urls = [f"http://127.0.0.1:{port}" for _, port in started]
    async with run_gateway(folder, engines=urls, **TIMES) as gateway:
        yield gateway, engines
    for runner, _ in started:
        await runner.cleanup()


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def find_leftovers(gateway: Running) -> list[str]:
    """What is still there that belonged to some request."""
    context = gateway.context
    found = (
        [f"{context.deployment.counters.num_in_flight} requests"] if context.deployment.counters.num_in_flight else []
    )
    if in_flight := context.deployment.all_in_flight():
        found.append(f"checkpoints with requests: {in_flight}")
    found += [
        f"{state.num_in_flight} at the engine" for state in context.deployment.engines.values() if state.num_in_flight
    ]
    for pool in context.upstream._pools.values():
        if pool._waiting or pool._num_opening or len(pool.open) != len(pool._idle):
            found.append(f"connections: {len(pool.open)} open, {len(pool._idle)} idle, {len(pool._waiting)} awaited")
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_torn_connections_leave_nothing_behind(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # what the gateway runs on
        runner.run(tear_often(seed, tmp_path))
    ours = [record for record in caplog.records if record.name.startswith(("gateway", "asyncio", "uvicorn"))]
    # What tearing an engine's connections must come to: it is given up, and a request that two were torn over is stopped.
    expected = ("gave up on", "two engines were lost over one request")
    assert [each.getMessage() for each in ours if not each.getMessage().startswith(expected)] == []


async def tear_often(seed: int, folder: Path) -> None:
    """Rounds of torn connections, and a look at what is left after each."""
    async with serve(folder, num_engines=1 + seed % 2) as (gateway, engines):
        tearer = Tearer(seed, [gateway.key, await make_limited_key(gateway)])
        port = int(gateway.url.rsplit(":", 1)[1])
        await wait_for_answer(gateway)
        await settle(gateway)
        num_tasks, num_descriptors = len(asyncio.all_tasks()), count_descriptors()
        for _ in range(ROUNDS):
            for engine in engines:
                tearer.upset(engine)
            await asyncio.gather(*(tear(tearer, port) for _ in range(CONNECTIONS)))
            await settle(gateway)
            for engine in engines:
                tearer.calm(engine)
            await wait_for_answer(gateway)
        await wait_until(lambda: len(asyncio.all_tasks()) <= num_tasks)
        await wait_until(lambda: count_descriptors() <= num_descriptors)


async def make_limited_key(gateway: Running) -> str:
    body = {"name": "limited", "pairs": True, "limits": {"requests_per_day": 1_000_000, "tokens_per_day": 10**9}}
    async with gateway.http.post(f"{gateway.url}/operator/v1/keys", json=body, headers=gateway.admin) as answer:
        return str((await answer.json())["key"])


async def wait_for_answer(gateway: Running) -> None:
    """The gateway answers, at the latest once it trusts an engine again that failed."""
    async with asyncio.timeout(20):
        while True:
            async with gateway.http.post(f"{gateway.url}{PATHS[0]}", json=QUESTION, headers=gateway.auth) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)


async def settle(gateway: Running) -> None:
    try:
        await wait_until(lambda: not find_leftovers(gateway), timeout_s=20.0)
    except TimeoutError:
        pytest.fail(
            f"left behind: {find_leftovers(gateway)}; tasks wait in {[locate(task) for task in asyncio.all_tasks()]}"
        )


def locate(task: asyncio.Task[Any]) -> str:
    """The innermost coroutine that a task waits in, and its line."""
    coroutine: Any = task.get_coro()
    while getattr(getattr(coroutine, "cr_await", None), "cr_frame", None) is not None:
        coroutine = coroutine.cr_await
    frame = getattr(coroutine, "cr_frame", None)
    return f"{getattr(coroutine, '__qualname__', coroutine)}:{frame.f_lineno if frame else '?'}"
