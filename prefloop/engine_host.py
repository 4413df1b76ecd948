"""Runs an engine for every whole model that the gateway wants, on this machine, and tells the gateway of it.

Level-triggered: looks at what the gateway publishes, starts what is missing on a free loopback port, registers what
answers, withdraws and stops what is wanted no more. While the gateway cannot be asked nothing changes. Leaves alone what
others registered, but for leftovers: addresses on loopback where nobody listens.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from prefloop.servers.ports import find_port
from prefloop.supervisor import Service, Supervisor

log = logging.getLogger("prefloop.engine_host")

POLL_S = 1.0
TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Wanted:
    """A whole model that needs an engine: its checkpoint id, which is the name to serve it under, and its directory."""

    checkpoint: str
    path: str


@dataclass(frozen=True)
class Hosted:
    """An engine of ours, named as its service."""

    name: str
    url: str


class EngineHost:
    """One machine's engines for whole models. `build_service` makes the process that serves a model on a port."""

    def __init__(
        self,
        gateway_url: str,
        read_key: Callable[[], str],
        supervisor: Supervisor,
        build_service: Callable[[Wanted, int], Service],
        poll_s: float = POLL_S,
    ) -> None:
        self._gateway_url, self._read_key, self._supervisor = gateway_url, read_key, supervisor
        self._build_service, self._poll_s = build_service, poll_s
        self.hosted: dict[str, Hosted] = {}  # by checkpoint

    async def run(self) -> None:
        """Look until cancelled; whoever stops the supervisor stops the engines."""
        async with httpx.AsyncClient(base_url=self._gateway_url, timeout=TIMEOUT_S) as client:
            while True:
                try:
                    await self.look(client)
                except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                    log.debug("the gateway does not say what it wants: %s", error)
                await asyncio.sleep(self._poll_s)

    async def look(self, client: httpx.AsyncClient) -> None:
        """Do once what the gateway asks for. Raises httpx.HTTPError if it cannot be asked."""
        if not (key := self._read_key()):
            return
        headers = {"authorization": f"Bearer {key}"}
        said = (await client.get("/operator/v1/engines", headers=headers)).raise_for_status().json()
        wanted = [Wanted(row["checkpoint"], row["path"]) for row in said["wanted"]]
        there = {row["url"]: row["checkpoint"] for row in said["data"] if row["checkpoint"] and not row["is_withdrawn"]}
        for url in [url for url in there if self._is_leftover(url)]:
            (await client.delete("/operator/v1/engines", params={"url": url}, headers=headers)).raise_for_status()
            del there[url]
        for checkpoint in self.hosted.keys() - {row.checkpoint for row in wanted}:
            await self._end(checkpoint, client, headers)
        for row in wanted:
            if row.checkpoint not in self.hosted and row.checkpoint not in there.values():
                self._start(row)
        for checkpoint, hosted in self.hosted.items():
            if there.get(hosted.url) != checkpoint and await _is_healthy(hosted.url):
                body = {"url": hosted.url, "checkpoint": checkpoint}
                (await client.post("/operator/v1/engines", json=body, headers=headers)).raise_for_status()

    def _start(self, wanted: Wanted) -> None:
        port = find_port()
        service = self._build_service(wanted, port)
        self.hosted[wanted.checkpoint] = Hosted(service.name, f"http://127.0.0.1:{port}")
        self._supervisor.start(service)

    async def _end(self, checkpoint: str, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        """Withdraw first, so that no gateway asks an engine that is gone."""
        hosted = self.hosted[checkpoint]
        (await client.delete("/operator/v1/engines", params={"url": hosted.url}, headers=headers)).raise_for_status()
        await self._supervisor.end(hosted.name)
        del self.hosted[checkpoint]

    def _is_leftover(self, url: str) -> bool:
        parts = urlsplit(url)
        if parts.hostname != "127.0.0.1" or url in {hosted.url for hosted in self.hosted.values()}:
            return False
        with socket.socket() as probe:
            return probe.connect_ex((parts.hostname, parts.port or 80)) != 0


async def _is_healthy(url: str) -> bool:
    try:
        async with httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S) as client:
            return (await client.get(f"{url}/health")).status_code == 200
    except httpx.HTTPError:
        return False
