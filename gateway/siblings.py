"""What the workers of one gateway, which share its port, tell each other: their metrics, and that keys have changed.

Each listens on a socket in Linux's abstract namespace, for processes of the same user alone. Whoever of them Prometheus
happens to reach answers for all: every series carries its `worker`, so a worker that starts again resets only its own.
Nothing here touches a request; a worker that does not answer in a second is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from feedback.outages import log_failure

if TYPE_CHECKING:
    from gateway.serving.metrics import Metrics

logger = logging.getLogger("gateway.siblings")

_TIMEOUT_S = 1.0
_METRICS, _KEYS = b"metrics\n", b"keys\n"
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True)
class Place:
    """Which of `count` workers this process is; `gateway` names the gateway on this machine."""

    index: int = 0
    count: int = 1
    gateway: str = field(default_factory=lambda: secrets.token_hex(8))

    def address_of(self, index: int) -> str:
        """Where a worker listens for its siblings."""
        return f"\0prefloop-{self.gateway}-{index}"


class _Sample(msgspec.Struct, array_like=True):
    name: str
    labels: dict[str, str]
    value: float


class _Family(msgspec.Struct, array_like=True):
    name: str
    text: str
    kind: str
    samples: list[_Sample]


class Siblings:
    """This worker among the others; alone, it only renders and refreshes its own."""

    def __init__(self, place: Place, metrics: Metrics, refresh_keys: Callable[[], Awaitable[None]]) -> None:
        self._place, self._metrics, self._refresh = place, metrics, refresh_keys

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[None]:
        """Answer the siblings while the block runs."""
        if self._place.count == 1:
            yield
            return
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._place.address_of(self._place.index))
        server = await asyncio.start_unix_server(self._answer, sock=listener)
        try:
            yield
        finally:
            server.close()

    async def refresh_keys(self) -> None:
        """Read the keys again, here and in every sibling. Raises what the database raises here."""
        await self._refresh()
        await asyncio.gather(*(self._ask(index, _KEYS) for index in self._others()))

    async def render(self) -> bytes:
        """The text that Prometheus reads, of all workers."""
        if self._place.count == 1:
            return self._metrics.render()
        others = self._others()
        answers = await asyncio.gather(*(self._ask(index, _METRICS) for index in others))
        of_worker = {self._place.index: _dump(self._metrics.registry)}
        for index, answer in zip(others, answers, strict=True):
            if answer is not None:
                of_worker[index] = msgspec.msgpack.decode(answer, type=list[_Family])
        return generate_latest(_Merged(of_worker, self._place.count))

    def _others(self) -> list[int]:
        return [index for index in range(self._place.count) if index != self._place.index]

    async def _ask(self, index: int, question: bytes) -> bytes | None:
        """A sibling's answer; None if it gives none in time."""
        channel = socket.socket(socket.AF_UNIX)
        channel.setblocking(False)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(channel, self._place.address_of(index))
                reader, writer = await asyncio.open_unix_connection(sock=channel)
                try:
                    writer.write(question)
                    answer = await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            channel.close()
            logger.warning("worker %d did not answer: %s", index, error or "time-out")
            return None
        return answer or None  # nothing at all: it failed

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not _is_own_user(writer.get_extra_info("socket")):
                return
            async with asyncio.timeout(_TIMEOUT_S):
                question = await reader.readline()
                if question == _KEYS:
                    await self._refresh()
                writer.write(msgspec.msgpack.encode(_dump(self._metrics.registry)) if question == _METRICS else b"ok")
                await writer.drain()
        except Exception as error:
            log_failure(logger, "a sibling's question failed", error)
        finally:
            writer.close()


class _Merged(Collector):
    """All workers' families, each once, every sample with its worker."""

    def __init__(self, of_worker: dict[int, list[_Family]], num_workers: int) -> None:
        self._of_worker, self._num_workers = of_worker, num_workers

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for index, families in sorted(self._of_worker.items()):
            for family in families:
                metric = merged.setdefault(family.name, Metric(family.name, family.text, family.kind))
                for sample in family.samples:
                    metric.add_sample(sample.name, {**sample.labels, "worker": str(index)}, sample.value)
        up = GaugeMetricFamily("prefloop_worker_up", "Whether the worker answered this scrape.", labels=["worker"])
        for index in range(self._num_workers):
            up.add_metric([str(index)], index in self._of_worker)
        yield from merged.values()
        yield up


def _dump(registry: Collector) -> list[_Family]:
    return [
        _Family(
            metric.name,
            metric.documentation,
            metric.type,
            [_Sample(sample.name, dict(sample.labels), float(sample.value)) for sample in metric.samples],
        )
        for metric in registry.collect()
    ]


def _is_own_user(channel: socket.socket) -> bool:
    sent = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(sent)[1] == os.geteuid())
