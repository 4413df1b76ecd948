"""One machine that plays a cluster: two gateways, three engines found by DNS, Kafka, PostgreSQL, S3, sidecars, trainer.

Every process has a directory of its own, and the gateways share nothing but their secrets, the database and the log. Each
gateway reaches the database over a link that can be cut. Each engine has an address of its own and sees only the directory
that its sidecar fills.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.chaos.stage import ROUND_EVERY, read_json, start_postgres
from bench.chaos.victims import BrokerVictim, Service, Victim
from bench.fleet.links import Balancer, Link, is_ready
from gateway.access.secrets import load_secrets
from prefloop.servers.dns import DnsServer
from prefloop.servers.kafka import Broker
from prefloop.servers.ports import find_port
from prefloop.servers.s3 import BUCKET, S3Server
from prefloop.services import Layout, engine_service

NAME = "engine.fleet"
ADAPTERS = "checkpoints"  # where an engine's sidecar puts what it fetches, seen from the engine's own directory
GATEWAYS = ("gateway-1", "gateway-2")
ENGINES = ("engine-1", "engine-2", "engine-3")

_GATEWAY = {
    "PREFLOOP_GATEWAY__BREAKER_MAX_BACKOFF_S": "4",
    "PREFLOOP_GATEWAY__CONNECT_WAIT_S": "120",
    "PREFLOOP_GATEWAY__COMPARISON_COMMIT_MS": "15000",  # a machine that carries all of this is slow: pairs may wait
    "PREFLOOP_GATEWAY__PROBE_TOLERANCE": "0.01",  # three engines share two cores: nothing else may stop a load
    "PREFLOOP_ROLLOUT__AUTO_APPROVE": "true",
    "PREFLOOP_ROLLOUT__APPROVE_COUNTDOWN_S": "0",
}


class Engine(Service):
    """An engine with the processes that it started: what ends when a container or a machine does."""

    async def kill(self) -> bool:
        """SIGKILL to all of them; False if there was nothing to kill."""
        if self._process is None or not self.is_running():
            return False
        os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own
        return await self._process.wait() == -signal.SIGKILL


@dataclass
class Stage:
    """What a run needs to know of the machine. links: from each gateway to the database; engine_urls: by name."""

    folder: Path
    balancer: Balancer
    links: dict[str, Link]
    victims: dict[str, Victim]
    engine_urls: dict[str, str]
    gateway_urls: dict[str, str]
    trainer_url: str
    gateway_database: str
    trainer_database: str
    admin_key: str
    session: aiohttp.ClientSession

    @property
    def trainer_dir(self) -> Path:
        return self.folder / "trainer"

    async def read_gateway(self, name: str, path: str = "status") -> dict[str, Any]:
        """What a gateway's operator API says; {} while it does not answer."""
        return await read_json(self.session, f"{self.gateway_urls[name]}/operator/v1/{path}", self.admin_key)

    async def read_trainer(self) -> dict[str, Any]:
        """The trainer's /status; {} while it does not answer."""
        return await read_json(self.session, f"{self.trainer_url}/status")

    async def make_key(self) -> str:
        """A key of the people's app, made at one gateway and good at both."""
        body = {"name": "people", "scope": "app", "pairs": True}
        headers = {"authorization": f"Bearer {self.admin_key}"}
        url = f"{self.gateway_urls[GATEWAYS[0]]}/operator/v1/keys"
        async with self.session.post(url, json=body, headers=headers) as answer:
            answer.raise_for_status()
            key = str((await answer.json())["key"])
        for url in self.gateway_urls.values():  # keys are read every five seconds
            while not await read_json(self.session, f"{url}/v1/models", key):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        return key

    async def answers(self, engine: str) -> bool:
        """Whether an engine's process is there."""
        return bool(await read_json(self.session, f"{self.engine_urls[engine]}/v1/models"))

    async def count_serving(self, engine: str) -> int:
        """How many gateways may ask an engine for the stable checkpoint."""
        num = 0
        for gateway in GATEWAYS:
            status = await self.read_gateway(gateway)
            stable = (status.get("stable") or {}).get("id")
            num += any(
                row["url"] == self.engine_urls[engine]
                and row["up"]
                and row["breaker"] == "closed"
                and stable in row["proven"]
                for row in status.get("engines", ())
            )
        return num


@contextlib.asynccontextmanager
async def set_up(
    folder: Path, seed_policy: Path, seed: int, session: aiohttp.ClientSession, *, is_real: bool, round_every: int
) -> AsyncIterator[Stage]:
    """An empty fleet with its databases, store, links and DNS started, its other processes not; cleared away at the end.

    is_real: vLLM, else stand-ins; round_every: choices that make a round due. Raises KafkaFailed, PostgresError, S3Failed.
    """
    async with contextlib.AsyncExitStack() as stack:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "logs").mkdir(parents=True)
        admin_key = load_secrets(folder).admin_key
        with contextlib.ExitStack() as servers:
            server = start_postgres(servers)
            broker = Broker(folder / "kafka")
            servers.callback(broker.kill)
            store = S3Server(folder / "s3")
            store.start()
            servers.callback(store.stop)
            store.make_bucket()
            stack.push(servers.pop_all())
        databases = {name: server.create_database(f"prefloop_{name}") for name in ("gateway", "trainer")}
        links = {name: Link(server.port) for name in GATEWAYS}
        dns = DnsServer()
        for part in (*links.values(), dns):
            await part.start()
            stack.push_async_callback(part.stop)
        ports = {name: find_port() for name in (*GATEWAYS, "engines", "trainer")}
        balancer = Balancer([ports[name] for name in GATEWAYS])
        await balancer.start()
        stack.push_async_callback(balancer.stop)
        hosts = {name: f"127.0.0.{i}" for i, name in enumerate(ENGINES, start=2)}
        dns.zone[NAME] = list(hosts.values())
        shared = {
            "PREFLOOP_CONFIG": os.devnull,
            "PREFLOOP_PRESET": "demo",
            "PREFLOOP_BASE_MODEL": str(seed_policy),
            "PREFLOOP_LOG_URL": broker.url,
            "PREFLOOP_CHECKPOINTS_URL": f"s3://{BUCKET}/fleet",
            "PREFLOOP_FAULTS_SEED": str(seed),
            **store.environment,
        }
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        engine_urls = {name: f"http://{host}:{ports['engines']}" for name, host in hosts.items()}
        stage = Stage(
            folder, balancer, links, {"broker": BrokerVictim(broker)}, engine_urls,
            {name: urls[name] for name in GATEWAYS}, urls["trainer"], databases["gateway"], databases["trainer"],
            admin_key, session,
        )  # fmt: skip
        for name in GATEWAYS:
            env = _GATEWAY | {
                "PREFLOOP_GATEWAY__PORT": str(ports[name]),
                "PREFLOOP_GATEWAY__ENGINES": json.dumps([f"dns+http://{NAME}:{ports['engines']}"]),
                "PREFLOOP_GATEWAY__DNS_SERVER": dns.address,
                "PREFLOOP_GATEWAY__ENGINE_CHECKPOINTS_DIR": ADAPTERS,
                "PREFLOOP_GATEWAY__DATABASE_URL": databases["gateway"].replace(
                    f":{server.port}/", f":{links[name].port}/"
                ),
            }
            _add_service(stage, name, [sys.executable, "-m", "gateway.app"], shared | env)
        for name, host in hosts.items():
            _add_engine(stage, name, host, ports["engines"], seed_policy, is_real=is_real)
            env = {
                "PREFLOOP_SYNC__DIRECTORY": str(folder / name / ADAPTERS),
                "PREFLOOP_SYNC__GATEWAY_URL": balancer.url,
                "PREFLOOP_SYNC__PORT": str(find_port()),
            }
            _add_service(stage, f"sync-{name[-1]}", [sys.executable, "-m", "prefloop.cli", "sync"], shared | env)
        trainer = {
            "PREFLOOP_TRAINER__PORT": str(ports["trainer"]),
            "PREFLOOP_TRAINER__GATEWAY_URL": balancer.url,
            "PREFLOOP_TRAINER__DATABASE_URL": databases["trainer"],
            "PREFLOOP_TRAINER__SEED": str(seed),
            "PREFLOOP_TRAINER__NICE": "0",
            ROUND_EVERY: str(round_every),
        }
        _add_service(stage, "trainer", [sys.executable, "-m", "trainer.main"], shared | trainer)
        try:
            yield stage
        finally:
            await stop_all(stage)


def _add_service(stage: Stage, name: str, argv: list[str], env: Mapping[str, str]) -> None:
    """A process of ours with a state directory of its own, and the secrets that all of them share."""
    state_dir = stage.folder / name
    state_dir.mkdir(exist_ok=True)
    shutil.copytree(stage.folder / "secrets", state_dir / "secrets")
    port = int(stage.gateway_urls[name].rpartition(":")[2]) if name in GATEWAYS else 0

    async def is_up() -> bool:
        if port:
            return await is_ready(stage.session, port)
        return name != "trainer" or (await stage.read_trainer()).get("checkpoint") is not None

    log_path = stage.folder / "logs" / f"{name}.log"
    stage.victims[name] = Service(name, argv, {**env, "PREFLOOP_STATE_DIR": str(state_dir)}, log_path, is_up)


def _add_engine(stage: Stage, name: str, host: str, port: int, seed_policy: Path, *, is_real: bool) -> None:
    directory = stage.folder / name
    (directory / ADAPTERS).mkdir(parents=True)
    env: dict[str, str] = {"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd())}
    if is_real:
        service = engine_service(Layout(directory, port=port - 1, model=str(seed_policy)))
        argv = [host if word == "127.0.0.1" else word for word in service.argv]
        env |= dict(service.env)
    else:
        argv = [sys.executable, "-m", "bench.fleet.stand_in", host, str(port)]

    async def is_up() -> bool:
        return await stage.count_serving(name) == len(GATEWAYS)

    log_path = stage.folder / "logs" / f"{name}.log"
    stage.victims[name] = Engine(name, ["env", "-C", str(directory), *argv], env, log_path, is_up)


async def stop_all(stage: Stage) -> None:
    """End whatever still runs, clients of others first."""
    order = ("trainer", *(name for name in stage.victims if name.startswith("sync")), *GATEWAYS, *ENGINES, "broker")
    for name in order:
        victim = stage.victims.get(name)
        if victim is None or not victim.is_running():
            continue
        if isinstance(victim, Engine):
            await victim.kill()
        else:
            await victim.stop()
