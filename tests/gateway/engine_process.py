"""A fake engine with what a process has: a start time, counted tokens, a way to die and to hang; and our end of the line.

`Caller` is the smallest client to engines that the swap needs.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from conftest import start_engine
from engine import FakeEngine

from gateway.engines.swap import Swap
from gateway.errors import EngineUnavailable


@dataclass
class EngineProcess(FakeEngine):
    """Dies and comes back without its adapters; hangs: alive to every look, but no completion ever ends; freezes: answers nothing."""

    started_at: float = 1000.0
    num_tokens: int = 0
    has_metrics: bool = True
    is_hung: bool = False
    is_frozen: bool = False
    fails_to_load: bool = False
    lacks: set[str] = field(default_factory=set)  # checkpoints whose files its sidecar has not fetched
    paths: list[str] = field(default_factory=list)  # that it was told to load
    port: int = 0
    host: str = "127.0.0.1"
    unloads: list[str] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        self.runner, self.port = await start_engine(self, self.port, self.host)

    async def kill(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
        self.runner = None

    async def restart(self) -> None:
        await self.kill()
        self.adapters.clear()
        self.started_at += 100
        await self.start()

    def build(self) -> web.Application:
        app = super().build()
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        if self.is_frozen:
            await asyncio.sleep(3600)
        return await super()._models(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        if not self.has_metrics:
            return web.Response(status=404)
        return web.Response(
            text="# HELP process_start_time_seconds Start time.\n"
            f"process_start_time_seconds {self.started_at}\n"
            "# TYPE vllm:generation_tokens_total counter\n"
            f'vllm:generation_tokens_total{{engine="0",model_name="base"}} {self.num_tokens}\n'
        )

    async def _probe(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        self.probes.append(body["model"])
        if self.is_hung:
            await asyncio.sleep(3600)
        if body["model"] not in self.adapters:
            return web.json_response({"error": {"message": "does not exist"}}, status=404)
        return await super()._probe(request)

    async def _load(self, request: web.Request) -> web.Response:
        if self.fails_to_load:
            return web.json_response({"error": {"message": "EngineDeadError"}}, status=500)
        body = await request.json()
        self.paths.append(body["lora_path"])
        if body["lora_name"] in self.lacks:
            return web.json_response({"error": {"message": f"No adapter found for {body['lora_path']}"}}, status=404)
        return await super()._load(request)

    async def _unload(self, request: web.Request) -> web.Response:
        self.unloads.append((await request.json())["lora_name"])
        return await super()._unload(request)


async def reconcile_engines(swap: Swap) -> None:
    """Look at every engine once, as each one's loop does."""
    await asyncio.gather(*(swap.reconcile_engine(state) for state in swap._deployment.states))


class Caller:
    """Calls engines as the gateway's own client does."""

    def __init__(self, session: aiohttp.ClientSession, timeout_s: float = 60.0) -> None:
        self._session, self.timeout_s = session, timeout_s

    def drop_waiting(self, engine: str) -> None:
        """Nothing waits here."""

    def forget(self, engine: str) -> None:
        """Connections are the session's."""

    async def call(
        self, engine: str, path: str, payload: dict[str, Any] | None, *, timeout_s: float
    ) -> tuple[int, bytes]:
        """Shorter of its own time-out and the caller's, so that tests of hangs end."""
        method = "GET" if payload is None else "POST"
        try:
            async with (
                asyncio.timeout(min(timeout_s, self.timeout_s)),
                self._session.request(method, engine + path, json=payload) as response,
            ):
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineUnavailable(f"{engine}: {str(error) or type(error).__name__}") from error
