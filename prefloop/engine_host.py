"""Runs an engine on this machine for every whole model that the gateway asks for, and registers it there.

A reconciler: reads what the gateway requires, starts what is missing on a free loopback port, registers what answers,
withdraws and stops what is no longer required. While the gateway does not answer nothing changes. Leaves alone what
others registered, but for stale addresses: on loopback, where nobody listens.
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
class RequiredModel:
    """A whole model that needs an engine: its checkpoint id, which is the name to serve it under, and its directory."""

    checkpoint: str
    path: str


@dataclass(frozen=True)
class HostedEngine:
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
        build_service: Callable[[RequiredModel, int], Service],
        poll_s: float = POLL_S,
    ) -> None:
        self._gateway_url, self._read_key, self._supervisor = gateway_url, read_key, supervisor
        self._build_service, self._poll_s = build_service, poll_s
        self.hosted: dict[str, HostedEngine] = {}  # by checkpoint

    async def run(self) -> None:
        """Reconcile until cancelled; whoever stops the supervisor stops the engines."""
        async with httpx.AsyncClient(base_url=self._gateway_url, timeout=TIMEOUT_S) as client:
            while True:
                try:
                    await self.reconcile(client)
                except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                    log.debug("the gateway does not say which engines it requires: %s", error)
                await asyncio.sleep(self._poll_s)

    async def reconcile(self, client: httpx.AsyncClient) -> None:
        """Start, register and end once what the gateway asks for. Raises httpx.HTTPError if it cannot be asked."""
        if not (key := self._read_key()):
            return
        headers = {"authorization": f"Bearer {key}"}
        answer = (await client.get("/operator/v1/engines", headers=headers)).raise_for_status().json()
        required = [RequiredModel(row["checkpoint"], row["path"]) for row in answer["wanted"]]
        registered = {
            row["url"]: row["checkpoint"] for row in answer["data"] if row["checkpoint"] and not row["is_withdrawn"]
        }
        for url in [url for url in registered if self._is_stale(url)]:
            (await client.delete("/operator/v1/engines", params={"url": url}, headers=headers)).raise_for_status()
            del registered[url]
        for checkpoint in self.hosted.keys() - {row.checkpoint for row in required}:
            await self._end(checkpoint, client, headers)
        for row in required:
            if row.checkpoint not in self.hosted and row.checkpoint not in registered.values():
                self._start(row)
        for checkpoint, hosted in self.hosted.items():
            if registered.get(hosted.url) != checkpoint and await is_healthy(hosted.url):
                body = {"url": hosted.url, "checkpoint": checkpoint}
                (await client.post("/operator/v1/engines", json=body, headers=headers)).raise_for_status()

    def _start(self, model: RequiredModel) -> None:
        port = find_port()
        service = self._build_service(model, port)
        self.hosted[model.checkpoint] = HostedEngine(service.name, f"http://127.0.0.1:{port}")
        self._supervisor.start(service)

    async def _end(self, checkpoint: str, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        """Withdraw first, so that no gateway asks an engine that is gone."""
        hosted = self.hosted[checkpoint]
        (await client.delete("/operator/v1/engines", params={"url": hosted.url}, headers=headers)).raise_for_status()
        await self._supervisor.end(hosted.name)
        del self.hosted[checkpoint]

    def _is_stale(self, url: str) -> bool:
        parts = urlsplit(url)
        if parts.hostname != "127.0.0.1" or url in {hosted.url for hosted in self.hosted.values()}:
            return False
        with socket.socket() as probe:
            return probe.connect_ex((parts.hostname, parts.port or 80)) != 0


async def is_healthy(url: str) -> bool:
    """Whether an engine answers that it is well."""
    try:
        async with httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S) as client:
            return (await client.get(f"{url}/health")).status_code == 200
    except httpx.HTTPError:
        return False
