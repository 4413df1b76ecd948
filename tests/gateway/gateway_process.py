"""A gateway in a process of its own, as operators start it, in front of a fake engine of the test's."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from conftest import QUESTION, start_engine
from engine import FakeEngine

from bench.gateway.checkpoints import make_checkpoint
from prefloop.servers.ports import find_port

ROOT = Path(__file__).parents[2]


@dataclass
class GatewayProcess:
    """The process, its engine, and a client whose key may be answered twice."""

    process: asyncio.subprocess.Process
    url: str
    engine: FakeEngine
    http: aiohttp.ClientSession
    log_path: Path
    admin_key: str
    key: str = ""

    @property
    def auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def admin(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.admin_key}"}

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    async def make_key(self) -> str:
        body = {"name": "tests", "scope": "app", "pairs": True}
        async with self.http.post(f"{self.url}/operator/v1/keys", json=body, headers=self.admin) as answer:
            assert answer.status == 201, await answer.text()
            return str((await answer.json())["key"])

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers in lower case, and JSON."""
        async with self.http.post(self.url + path, json=body, headers={**self.auth, **headers}) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, json.loads(await answer.read())

    async def ask(self, **headers: str) -> dict[str, Any]:
        """One chat request, its JSON. Fails unless it gets 200."""
        status, _, body = await self.post("/v1/chat/completions", QUESTION, **headers)
        assert status == 200, body
        return dict(body)

    async def get(self, path: str) -> tuple[int, str]:
        async with self.http.get(self.url + path) as answer:
            return answer.status, await answer.text()

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels."""
        _, text = await self.get("/metrics")
        found = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for series, value in found if all(each in series for each in wanted))


async def launch(state_dir: Path, log_path: Path, env: dict[str, str]) -> asyncio.subprocess.Process:
    """Start `python -m gateway.app`."""
    with log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.app", cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PREFLOOP_STATE_DIR": str(state_dir), **env},
        )  # fmt: skip


@contextlib.asynccontextmanager
async def run_gateway_process(tmp_path: Path, **settings: Any) -> AsyncIterator[GatewayProcess]:
    """A gateway that serves a stable checkpoint; stopped, or else killed, when the block ends."""
    engine = FakeEngine()
    runner, engine_port = await start_engine(engine)
    port = find_port()
    section = {
        "port": port,
        "engines": json.dumps([f"http://127.0.0.1:{engine_port}"]),
        "ask_rate": 1.0,
        "random_share": 0.0,
        "max_asks_per_user_day": 100_000,
        "reconcile_s": 0.2,
        **settings,
    }
    env = {f"PREFLOOP_GATEWAY__{name.upper()}": str(value) for name, value in section.items()}
    process = await launch(tmp_path / "state", tmp_path / "gateway.log", {**env, "PREFLOOP_ROLLOUT__TICK_S": "0.05"})
    try:
        async with aiohttp.ClientSession() as http:
            running = GatewayProcess(process, f"http://127.0.0.1:{port}", engine, http, tmp_path / "gateway.log", "")
            await wait_for_status(running, "/livez", 200)
            running.admin_key = (tmp_path / "state" / "secrets" / "admin_key").read_text().strip()
            running.key = await running.make_key()
            path = make_checkpoint(tmp_path / "checkpoints", 0)
            await running.post("/operator/v1/checkpoints", {"path": str(path)}, **running.admin)
            await wait_for_status(running, "/readyz", 200)
            yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 20)
        if process.returncode is None:
            process.kill()
            await process.wait()
        await runner.cleanup()


async def wait_for_status(running: GatewayProcess, path: str, status: int) -> None:
    """Look until it is answered so. Fails after 30 s, or if the process ends."""
    async with asyncio.timeout(30):
        while True:
            assert running.process.returncode is None, running.log
            with contextlib.suppress(aiohttp.ClientError):
                if (await running.get(path))[0] == status:
                    return
            await asyncio.sleep(0.02)
