"""One gateway whose engines are the addresses of a name, three mocks at three addresses, and the DNS that names them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from bench.gateway.checkpoints import make_checkpoint, make_key
from bench.gateway.loads import build_request
from bench.gateway.peers import LIMITS, MODEL
from bench.gateway.servers import Server
from bench.gateway.tools import SOURCES
from feedback.secret_files import read_admin_key
from prefloop.servers.dns import DnsServer
from prefloop.servers.ports import find_port

NAME = "engine.bench"
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
_CONVERSATIONS = ("4096", "X-Prefloop-Conversation: conversation-")  # so many that engines can share them
_CONNECTIONS = 16
_LOOK_S = 0.02
_WAIT_S = 120.0


class Machine:
    """What runs, and what can be done to it."""

    def __init__(
        self,
        gateway: Server,
        dns: DnsServer,
        http: aiohttp.ClientSession,
        admin_key: str,
        port: int,
        mock: Path,
        run: Path,
    ) -> None:
        self.gateway, self.dns = gateway, dns
        self._http, self._admin_key, self._port, self._mock, self._run = http, admin_key, port, mock, run
        self._mocks: dict[str, subprocess.Popen[bytes]] = {}
        self.key = ""

    def start_mock(self, host: str) -> None:
        """An engine at an address."""
        self._mocks[host] = subprocess.Popen([str(self._mock), str(self._port), host], start_new_session=True)

    def kill_mock(self, host: str) -> None:
        """kill -9."""
        self._mocks[host].send_signal(signal.SIGKILL)
        self._mocks.pop(host).wait()

    def stop_mocks(self) -> None:
        """All of them."""
        for host in list(self._mocks):
            self.kill_mock(host)

    def name(self, *hosts: str) -> None:
        """What DNS says from now on."""
        self.dns.zone[NAME] = list(hosts)

    async def count(self, host: str) -> int:
        """Chats that the engine has answered."""
        async with self._http.get(f"http://{host}:{self._port}/answered") as answer:
            return int(await answer.text())

    async def list_engines(self) -> dict[str, dict[str, Any]]:
        """The engines that the gateway may ask, by address."""
        headers = {"authorization": f"Bearer {self._admin_key}"}
        async with self._http.get(f"{self.gateway.url}/operator/v1/engines", headers=headers) as answer:
            rows = (await answer.json())["data"]
        return {row["url"].split("/")[2].rpartition(":")[0]: row for row in rows if not row["is_withdrawn"]}

    async def time_until(self, is_true: Callable[[dict[str, dict[str, Any]]], bool]) -> float:
        """Seconds until the gateway's engines are so. Raises TimeoutError."""
        started = time.monotonic()
        async with asyncio.timeout(_WAIT_S):
            while not is_true(await self.list_engines()):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
        return time.monotonic() - started

    async def use(self, *hosts: str) -> None:
        """Name these engines, and wait until they serve and no others."""
        self.name(*hosts)
        await self.time_until(lambda rows: set(rows) == set(hosts) and all(map(serves, rows.values())))

    async def load(self, wrk: Sequence[str], seconds: float) -> dict[str, float]:
        """wrk's load: seconds, answers, failed."""
        argv = [*wrk, "-t1", f"-c{_CONNECTIONS}", f"-d{max(1, round(seconds))}s"]
        argv += ["-s", str(SOURCES / "post.lua"), self.gateway.url, "--"]
        argv += [str(self._run / "whole.json"), *_CONVERSATIONS, f"authorization: Bearer {self.key}"]
        process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = await process.communicate()
        lines = output.decode().strip().splitlines()
        if process.returncode or not lines:
            raise RuntimeError(f"wrk failed: {(output + errors).decode()[-1000:]}")
        return dict(json.loads(lines[-1]))


def serves(row: dict[str, Any]) -> bool:
    """Whether the gateway sends requests to an engine."""
    return bool(row["up"] and row["breaker"] == "closed" and row["proven"])


@contextlib.asynccontextmanager
async def start_machine(run: Path, mock: Path) -> AsyncIterator[Machine]:
    """Everything started, one checkpoint served by the first engine; ended with the block. Raises ServerFailed."""
    async with AsyncExitStack() as stack:
        dns = DnsServer({NAME: [HOSTS[0]]})
        await dns.start()
        stack.push_async_callback(dns.stop)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)))
        port, engines_port = find_port(), find_port()
        env = {
            "PREFLOOP_CONFIG": os.devnull,
            "PREFLOOP_STATE_DIR": str(run / "state"),
            "PREFLOOP_POLICY": MODEL,
            "PREFLOOP_GATEWAY__PORT": str(port),
            "PREFLOOP_GATEWAY__ENGINES": json.dumps([f"dns+http://{NAME}:{engines_port}"]),
            "PREFLOOP_GATEWAY__DNS_SERVER": dns.address,
            "PREFLOOP_GATEWAY__PRICE_PER_MILLION_PROMPT_TOKENS": "1",
        }
        server = Server("gateway", [sys.executable, "-m", "gateway.app"], port, run / "gateway.log", env)
        stack.callback(server.stop)
        await asyncio.to_thread(server.wait_until, "/livez", 300)
        admin_key = read_admin_key(run / "state")
        machine = Machine(server, dns, http, admin_key, engines_port, mock, run)
        stack.callback(machine.stop_mocks)
        for host in HOSTS:
            machine.start_mock(host)
        (run / "whole.json").write_bytes(build_request(stream=False))
        machine.key = await asyncio.to_thread(_publish, server.url, admin_key, run / "checkpoints")
        await machine.use(*HOSTS)
        yield machine


def _publish(url: str, admin_key: str, folder: Path) -> str:
    """Register a checkpoint; a key of an app with limits, as production has."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {admin_key}"}, timeout=60) as admin:
        admin.post("/operator/v1/checkpoints", json={"path": str(make_checkpoint(folder, 0))}).raise_for_status()
        return make_key(admin, "bench", limits=LIMITS)
