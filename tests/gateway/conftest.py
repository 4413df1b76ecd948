"""A gateway served by uvicorn on a free port, in front of a fake engine, with one stable checkpoint."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from engine import FakeEngine
from world import World

from bench.gateway.checkpoints import make_checkpoint
from feedback.choices import outbox
from feedback.events import decode_event
from feedback.log import open_log
from feedback.outbox import load_rows
from gateway.app import Gateway, create_app
from gateway.engines.deployment import ServingView
from gateway.http.server import build_server
from gateway.serving.context import Context
from gateway.settings import GatewaySettings

QUESTION = {"model": "default", "messages": [{"role": "user", "content": "How are you?"}]}


@dataclass
class Running:
    """A gateway under test, its engine, and a client with a key that may be answered twice."""

    app: Gateway
    url: str
    engine: FakeEngine
    engine_runner: web.AppRunner
    engine_port: int
    http: aiohttp.ClientSession
    key: str = ""

    @property
    def context(self) -> Context:
        return self.app.context

    @property
    def admin(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.app.secrets.admin_key}"}

    @property
    def auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def client(self, key: str | None = None, **headers: str) -> openai.AsyncOpenAI:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=key or self.key, default_headers=names, max_retries=0
        )

    async def make_key(self, scope: str = "app", *, pairs: bool = True, name: str = "tests") -> str:
        body = {"name": name, "scope": scope, "pairs": pairs}
        async with self.http.post(f"{self.url}/operator/v1/keys", json=body, headers=self.admin) as answer:
            assert answer.status == 201
            return str((await answer.json())["key"])

    async def publish(self, folder: Path, number: int) -> str:
        path = make_checkpoint(folder, number)
        async with self.http.post(
            f"{self.url}/operator/v1/checkpoints", json={"path": str(path)}, headers=self.admin
        ) as answer:
            assert answer.status in (200, 201), await answer.text()
        return path.name

    async def ask(self, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        """One chat request, its JSON. Fails unless it gets 200."""
        async with self.http.post(
            f"{self.url}/v1/chat/completions", json={**QUESTION, **fields}, headers={**self.auth, **(headers or {})}
        ) as answer:
            assert answer.status == 200, await answer.text()
            return dict(await answer.json())

    async def choose(self, comparison: dict[str, Any], **body: Any) -> tuple[int, dict[str, Any]]:
        """Say something of a comparison: status and JSON."""
        body = {"preferred": "first", "token": comparison["token"], **body}
        url = f"{self.url}/v1/comparisons/{comparison['id']}/choice"
        async with self.http.post(url, json=body) as answer:
            return answer.status, dict(await answer.json())

    async def serve(self, view: ServingView) -> None:
        """Serve a view of the test's own: the controller's later generations are not waited for."""
        assert self.context.deployment.apply(view)


async def start_engine(engine: FakeEngine, port: int = 0, host: str = "127.0.0.1") -> tuple[web.AppRunner, int]:
    """Serve the engine; its runner and port."""
    runner = web.AppRunner(engine.build(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port, reuse_address=True)
    await site.start()
    return runner, runner.addresses[0][1]


async def wait_until(is_true: Any, timeout_s: float = 10.0) -> None:
    """Look every 10 ms. Fails if it never comes true."""
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def make_settings(
    tmp_path: Path, engine_port: int, preset: str = "default", shared: dict[str, Any] | None = None, **gateway: Any
) -> GatewaySettings:
    section = {
        "engines": [f"http://127.0.0.1:{engine_port}"],
        "connect_wait_s": 10.0,
        "reconcile_s": 0.2,
        "ask_rate": 1.0,
        "random_share": 0.0,
        "comparison_commit_ms": 5000.0,
        **gateway,
    }
    return GatewaySettings.model_validate(
        {
            "state_dir": tmp_path / "state",
            "preset": preset,
            "gateway": section,
            "rollout": {"tick_s": 0.02},
            **(shared or {}),
        }
    )


@contextlib.asynccontextmanager
async def run_gateway(
    tmp_path: Path, *, has_checkpoint: bool = True, engine: FakeEngine | None = None, **section: Any
) -> AsyncIterator[Running]:
    """A gateway that runs until the block ends."""
    engine = engine or FakeEngine()
    runner, engine_port = await start_engine(engine)
    app = create_app(make_settings(tmp_path, engine_port, **section))
    server = build_server(app, host="127.0.0.1", port=0, drain_timeout_s=2)
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started or serving.done())
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as http:
        running = Running(app, f"http://127.0.0.1:{port}", engine, runner, engine_port, http)
        running.key = await running.make_key()
        if has_checkpoint:
            stable = await running.publish(tmp_path / "checkpoints", 0)
            await wait_until(lambda: running.context.deployment.view.stable == stable)
        try:
            yield running
        finally:
            server.should_exit = True
            await serving
            with contextlib.suppress(Exception):
                await running.engine_runner.cleanup()


def read_said(gateway: Running) -> list[Any]:
    """What people said, oldest first: in the log, or on its way there."""
    topic = gateway.context.settings.topic
    with gateway.context.database.connect() as connection:  # first: what moves meanwhile is found twice, not never
        records: list[Any] = [row.record for row in load_rows(connection, outbox, 1000)]
    log = open_log(gateway.context.settings.log)
    records += [record for p in log.partitions(topic) for record in log.read(topic, p, 0, 1000, 0)]
    log.close()
    events = {event.id: event for record in records for event in [decode_event(record.headers, record.value)]}
    return [event.data for event in sorted(events.values(), key=lambda event: event.time)]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with run_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def make_world(tmp_path: Path) -> AsyncIterator[Callable[..., World]]:
    made: list[World] = []

    def make(**rollout: object) -> World:
        made.append(World(tmp_path, **rollout))
        return made[-1]

    yield make
    for world in made:
        world.close()
