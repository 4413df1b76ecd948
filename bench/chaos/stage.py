"""The machine that a chaos run plays on: gateway, trainer and engine's stand-in, with the log and database asked for.

Rounds are made tiny (few pairs, few frozen prompts, no replay), so that several end between two kills; everything else
is what production runs. Ports lie below those that the system hands to clients: nobody takes one while its owner is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.chaos.victims import BrokerVictim, DatabaseVictim, Service, Victim
from feedback.secret_files import read_admin_key
from prefloop.servers.kafka import Broker
from prefloop.servers.ports import find_port
from prefloop.servers.postgres import Postgres
from prefloop.startup import DatabaseKind, LogKind

_NUM_FROZEN = 16  # prompts of the offline gate
_ASK_TIMEOUT = aiohttp.ClientTimeout(total=2)
ROUND_EVERY = "PREFLOOP_TRAINER__ROUND_EVERY_PREFERENCES"

GATEWAY_SETTINGS = {
    "PREFLOOP_GATEWAY__COMPARISON_COMMIT_MS": "2000",
    "PREFLOOP_GATEWAY__CONNECT_WAIT_S": "10",
    "PREFLOOP_GATEWAY__BREAKER_MAX_BACKOFF_S": "2",
    "PREFLOOP_GATEWAY__RECONCILE_S": "0.5",
    "PREFLOOP_ROLLOUT__AUTO_APPROVE": "true",
    "PREFLOOP_ROLLOUT__KEEP_CHECKPOINTS": "0",  # the checker reads every manifest
}
TRAINER_SETTINGS = {
    ROUND_EVERY: "300",
    "PREFLOOP_TRAINER__ROUNDS_DURING_ROLLOUT": "true",
    "PREFLOOP_TRAINER__DPO__EPOCHS": "2",
    "PREFLOOP_TRAINER__DPO__MAX_NEW_PAIRS": "128",
    "PREFLOOP_TRAINER__DPO__REPLAY_SHARE": "0",
    "PREFLOOP_TRAINER__DPO__RESTART_EVERY": "0",
    "PREFLOOP_TRAINER__REWARD__REPLAY_SHARE": "0.25",
}


@dataclass
class Stage:
    """What a run needs to know of the machine. victims: by name, those that this pair of back ends has."""

    state_dir: Path
    gateway_url: str
    trainer_url: str
    gateway_database: str
    trainer_database: str
    faults_path: Path
    victims: dict[str, Victim]
    session: aiohttp.ClientSession

    @property
    def trainer(self) -> Service:
        service = self.victims["trainer"]
        assert isinstance(service, Service)
        return service

    async def read_trainer(self) -> dict[str, Any]:
        """The trainer's /status; {} while it does not answer."""
        return await read_json(self.session, f"{self.trainer_url}/status")

    async def read_gateway(self) -> dict[str, Any]:
        """The gateway's /operator/v1/status; {} while it does not answer."""
        return await read_json(self.session, f"{self.gateway_url}/operator/v1/status", read_admin_key(self.state_dir))

    async def make_key(self) -> str:
        """A key of the clients' app."""
        body = {"name": "chaos", "scope": "app", "pairs": True}
        headers = {"authorization": f"Bearer {read_admin_key(self.state_dir)}"}
        async with self.session.post(f"{self.gateway_url}/operator/v1/keys", json=body, headers=headers) as answer:
            answer.raise_for_status()
            return str((await answer.json())["key"])


@contextlib.contextmanager
def set_up(
    folder: Path, seed_policy: Path, log: LogKind, database: DatabaseKind, seed: int, session: aiohttp.ClientSession
) -> Iterator[Stage]:
    """An empty machine in `folder`, with PostgreSQL's databases made and nothing else started; cleared away at the end.

    Raises KafkaFailed, PostgresError.
    """
    with contextlib.ExitStack() as stack:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "logs").mkdir(parents=True)
        victims: dict[str, Victim] = {}
        shared = {
            "PREFLOOP_CONFIG": os.devnull,
            "PREFLOOP_STATE_DIR": str(folder),
            "PREFLOOP_PRESET": "demo",
            "PREFLOOP_BASE_MODEL": str(link_base(seed_policy, folder / "base")),
            "PREFLOOP_FAULTS_FILE": str(folder / "faults"),
            "PREFLOOP_FAULTS_SEED": str(seed),
        }
        gateway_database, trainer_database = f"sqlite:///{folder}/gateway.db", f"sqlite:///{folder}/trainer.db"
        if database == "postgresql":
            server = start_postgres(stack)
            victims["postgresql"] = DatabaseVictim(server)
            gateway_database = server.create_database("prefloop_gateway")
            trainer_database = server.create_database("prefloop_trainer")
            server.stop()
        if log == "kafka":
            broker = Broker(folder / "kafka")
            stack.callback(broker.kill)
            victims["broker"] = BrokerVictim(broker)
            shared["PREFLOOP_LOG_URL"] = broker.url
        ports = {name: find_port() for name in ("gateway", "trainer", "engine")}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        envs = {
            "engine": {},
            "gateway": GATEWAY_SETTINGS
            | {
                "PREFLOOP_GATEWAY__PORT": str(ports["gateway"]),
                "PREFLOOP_GATEWAY__ENGINES": json.dumps([urls["engine"]]),
                "PREFLOOP_GATEWAY__DATABASE_URL": gateway_database,
            },
            "trainer": TRAINER_SETTINGS
            | {
                "PREFLOOP_TRAINER__PORT": str(ports["trainer"]),
                "PREFLOOP_TRAINER__GATEWAY_URL": urls["gateway"],
                "PREFLOOP_TRAINER__DATABASE_URL": trainer_database,
                "PREFLOOP_TRAINER__SEED": str(seed),
            },
        }
        modules = {
            "engine": ["bench.chaos.engine", str(ports["engine"])],
            "gateway": ["gateway.app"],
            "trainer": ["trainer.main"],
        }

        async def is_gateway_up() -> bool:
            return bool(await read_json(session, f"{urls['gateway']}/readyz"))

        async def is_engine_up() -> bool:  # an engine is back when the gateway has given it a checkpoint again
            return len((await read_json(session, f"{urls['engine']}/v1/models")).get("data", ())) > 1

        async def is_trainer_up() -> bool:  # it shows a checkpoint once the policy is loaded and recovered
            return (await read_json(session, f"{urls['trainer']}/status")).get("checkpoint") is not None

        asks = {"engine": is_engine_up, "gateway": is_gateway_up, "trainer": is_trainer_up}
        for name, ask in asks.items():
            argv = [sys.executable, "-m", *modules[name]]
            victims[name] = Service(name, argv, shared | envs[name], folder / "logs" / f"{name}.log", ask)
        yield Stage(
            folder,
            urls["gateway"],
            urls["trainer"],
            gateway_database,
            trainer_database,
            folder / "faults",
            victims,
            session,
        )


def start_postgres(stack: contextlib.ExitStack) -> Postgres:
    """A server whose data the system's user for PostgreSQL can reach, gone with the stack."""
    folder = Path(tempfile.mkdtemp(prefix="prefloop-chaos-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    server = Postgres(folder)
    stack.callback(server.kill)
    server.start()
    return server


def link_base(seed_policy: Path, folder: Path) -> Path:
    """The seed policy with fewer frozen prompts, so that the offline gate takes seconds."""
    folder.mkdir()
    for path in seed_policy.iterdir():
        if path.name != "frozen.jsonl":
            (folder / path.name).symlink_to(path.resolve())
    rows = (seed_policy / "frozen.jsonl").read_text().splitlines(keepends=True)
    (folder / "frozen.jsonl").write_text("".join(rows[:_NUM_FROZEN]))
    return folder


async def read_json(session: aiohttp.ClientSession, url: str, key: str = "") -> dict[str, Any]:
    """{} unless it answers 200 within two seconds."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with session.get(url, headers=headers, timeout=_ASK_TIMEOUT) as answer:
            return dict(await answer.json()) if answer.status == 200 else {}
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return {}
