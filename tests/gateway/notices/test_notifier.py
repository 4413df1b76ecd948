"""Notices on their way to a real HTTP server that refuses, hangs and recovers, over restarts and changes of the leader."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web
from prometheus_client import CollectorRegistry

from feedback.database import Writer, open_database
from feedback.errors import SettingsError
from feedback.schema import migrate
from feedback.settings import load_settings
from gateway.notices.cursor import notice_cursors
from gateway.notices.notifier import Notifier
from gateway.rollout.desired_state import new_rollout
from gateway.sections.notices import NoticesSection
from gateway.sections.rollout import RolloutSection
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import CheckpointRow
from gateway.tables.rollouts import add_event, add_rollout
from gateway.tables.rows import RolloutRow
from gateway.tables.serving import ServingRow, get_serving, take_fence
from prefloop.servers.postgres import Postgres
from tests.databases import KINDS, make_url
from tests.postgres import run_server

SECRET = "whsec_" + b64encode(b"k" * 32).decode()
CHECKPOINT = CheckpointRow("c-000001-a", 1, "c-0", "lora", "d", "/x", "{}", "canary", 1.0, 1.0)


@dataclass
class Server:
    """Answers with `status`, or only after `delay_s`; keeps what came."""

    url: str = ""
    status: int = 200
    delay_s: float = 0.0
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def phases(self) -> list[str]:
        """Of the notices that were taken, the phase that they tell."""
        return [json.loads(body)["data"]["to"] for headers, body in self.got if headers["answered"] == "200"]

    async def handle(self, request: web.Request) -> web.Response:
        body, status = await request.read(), self.status
        self.got.append(
            ({name.lower(): value for name, value in request.headers.items()} | {"answered": str(status)}, body)
        )
        if self.delay_s:
            self.got[-1][0]["answered"] = "late"
            await asyncio.sleep(self.delay_s)
        return web.Response(status=status, text="x" * 100_000)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    running = Server()
    app = web.Application()
    app.router.add_post("/{path:.*}", running.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook/T0PSECRETPATH"
    yield running
    await runner.cleanup()


class Leader:
    """Membership as the notifier knows it: a fence, or none."""

    def __init__(self) -> None:
        self.fence: int | None = None


class World:
    """A database with one rollout, and its transitions."""

    def __init__(self, url: str) -> None:
        self.database = open_database(url)
        migrate(self.database, "gateway")
        self.writer = Writer(self.database)
        self.leader = Leader()
        self.registry = CollectorRegistry()
        row = new_rollout(CHECKPOINT, ServingRow("default", "c-0", 1, 1), "default", RolloutSection(), 0, time.time())

        def begin(conn: sa.Connection) -> int:
            get_serving(conn, "default")
            add_rollout(conn, row)
            return take_fence(conn, "default")

        self.leader.fence = self.writer.run(begin).result()
        self.row: RolloutRow = row

    def move(self, phase: str, note: str = "", at: float | None = None) -> None:
        old, self.row = self.row, replace(self.row, phase=phase)
        now = time.time() if at is None else at
        self.writer.run(lambda conn: add_event(conn, self.row, old.phase, "controller", "Superior", now, note)).result()

    def count(self, outcome: str) -> float:
        return self.registry.get_sample_value("prefloop_notices_total", {"outcome": outcome}) or 0.0

    @contextlib.asynccontextmanager
    async def notifying(self, *targets: dict[str, Any], **settings: Any) -> AsyncIterator[Notifier]:
        """A notifier that runs until the block ends, as if its gateway were killed."""
        self.registry = CollectorRegistry()
        section = NoticesSection.model_validate({"timeout_s": 0.5, "targets": list(targets), **settings})
        notifier = Notifier(
            self.writer, self.leader, section, "default", self.registry, look_s=0.02, first_backoff_s=0.05  # type: ignore[arg-type]
        )  # fmt: skip
        task = asyncio.create_task(notifier.run())
        try:
            await wait_until(lambda: self.count_cursors() == len(targets))
            yield notifier
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def count_cursors(self) -> int:
        with self.database.connect() as conn:
            return conn.execute(sa.select(sa.func.count()).select_from(notice_cursors)).scalar_one()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with run_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind = str(request.param)
    made = World(make_url(kind, tmp_path, request.getfixturevalue("postgres") if kind == "postgresql" else None))
    yield made
    made.writer.close()
    made.database.dispose()


async def wait_until(is_true: Any, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


def webhook(server: Server, **fields: Any) -> dict[str, Any]:
    return {"kind": "webhook", "url": server.url, "secret": SECRET, **fields}


async def test_only_phases_that_were_asked_for_are_told_and_each_is_signed(world: World, server: Server) -> None:
    world.move("Progressing")
    async with world.notifying(webhook(server)):
        for phase in ("Paused", "WaitingPromotion", "Promoting", "Aborting", "Degraded"):
            world.move(phase)
        await wait_until(lambda: len(server.phases) == 3)
        await wait_until(lambda: world.count("sent") == 3)
    assert server.phases == ["WaitingPromotion", "Aborting", "Degraded"]
    headers, body = server.got[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = b64encode(hmac.new(b64decode(SECRET[6:]), signed, sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 30


async def test_a_receiver_that_refuses_then_hangs_then_recovers_hears_of_everything_in_order(
    world: World, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.status = 503
    async with world.notifying(webhook(server), max_backoff_s=0.1):
        world.move("WaitingPromotion")
        world.move("Aborting")
        await wait_until(lambda: len(server.got) >= 2)
        server.delay_s = 60
        num = len(server.got)
        await wait_until(lambda: len(server.got) > num + 1)
        server.status, server.delay_s = 200, 0.0
        await wait_until(lambda: server.phases == ["WaitingPromotion", "Aborting"])
        await wait_until(lambda: world.count("sent") == 2)
    ids = {
        headers["webhook-id"] for headers, body in server.got if json.loads(body)["data"]["to"] == "WaitingPromotion"
    }
    assert len(ids) == 1 and world.count("failed") >= 3 and world.count("dropped") == 0
    assert "webhook at 127.0.0.1 did not take notice msg_" in caplog.text
    assert "it answered 503" in caplog.text and "no answer within 0.5 s" in caplog.text
    assert "T0PSECRETPATH" not in caplog.text and SECRET not in caplog.text


async def test_nothing_is_lost_while_no_gateway_runs_and_a_killed_one_only_repeats(
    world: World, server: Server
) -> None:
    async with world.notifying(webhook(server)):
        world.move("WaitingPromotion")
        await wait_until(lambda: world.count("sent") == 1)
    world.move("Aborting")  # nobody is there
    server.delay_s = 0.3
    async with world.notifying(webhook(server)):
        await wait_until(lambda: len(server.got) == 2)  # it has come, and the gateway is killed before it knows
    server.delay_s = 0.0
    async with world.notifying(webhook(server)):
        await wait_until(lambda: world.count("sent") == 1)
        world.move("Degraded")
        await wait_until(lambda: world.count("sent") == 2)
    assert server.phases == ["WaitingPromotion", "Aborting", "Degraded"]
    assert server.got[1][0]["webhook-id"] == server.got[2][0]["webhook-id"]


async def test_a_receiver_that_hangs_holds_up_no_other(world: World, server: Server) -> None:
    hanging = webhook(server) | {"url": server.url + "/hangs"}
    async with world.notifying({"kind": "log"}, hanging, timeout_s=30) as notifier:
        server.delay_s = 60
        begun = time.monotonic()
        world.move("WaitingPromotion")
        await wait_until(lambda: world.count("sent") == 1)
        assert time.monotonic() - begun < 10
        assert [receiver.kind for receiver in notifier.receivers] == ["log", "webhook"]


async def test_only_the_gateway_that_leads_tells(world: World, server: Server) -> None:
    fence, world.leader.fence = world.leader.fence, None
    async with world.notifying(webhook(server)):
        world.move("WaitingPromotion")
        await asyncio.sleep(0.2)
        assert server.got == []
        world.leader.fence = fence
        await wait_until(lambda: world.count("sent") == 1)
        world.writer.run(
            lambda conn: take_fence(conn, "default")
        ).result()  # another gateway leads, and this one does not know
        world.move("Aborting")
        await asyncio.sleep(0.2)
        assert server.phases == ["WaitingPromotion"]


async def test_what_nobody_took_for_too_long_is_dropped_and_counted(
    world: World, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 410
    async with world.notifying(webhook(server), give_up_s=3600):
        world.move("WaitingPromotion", at=time.time() - 3601)
        await wait_until(lambda: world.count("dropped") == 1)
        server.status = 200
        world.move("Aborting")
        await wait_until(lambda: world.count("sent") == 1)
    assert server.phases == ["Aborting"] and "too old and dropped" in caplog.text


async def test_slack_and_the_log_get_the_sentence(
    world: World, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.notifying({"kind": "slack", "url": server.url, "phases": ["Paused"]}, {"kind": "log"}):
        world.move("Paused", note="a <b>")
        world.move("Aborting")
        await wait_until(lambda: world.count("sent") == 2)
    [(headers, body)] = server.got
    assert "a &lt;b&gt;" in json.loads(body)["text"] and "webhook-signature" not in headers
    assert "Paused -> Aborting" in caplog.text


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ('{kind = "webhook", url = "https://h", secret = "whsec_c2hvcnQ="}', "24 bytes"),
        ('{kind = "webhook", url = "https://h", secret = "mysecretmysecretmysecretmysecret"}', "24 bytes"),
        ('{kind = "webhook", secret = "whsec_x"}', "needs a url"),
        ('{kind = "slack"}', "needs a url"),
        ('{kind = "log", url = "https://h"}', "a log has no url"),
        ('{kind = "pager", url = "https://h"}', "kind"),
        ('{kind = "log", phases = ["Waiting"]}', "WaitingPromotion"),
    ],
)
def test_a_target_that_cannot_be_told_is_refused_without_its_secret(
    target: str, words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prefloop.toml").write_text(f"[gateway.notices]\ntargets = [{target}]\n")
    monkeypatch.setenv("PREFLOOP_CONFIG", str(tmp_path / "prefloop.toml"))
    with pytest.raises((SettingsError, SystemExit)) as raised:
        load_settings(GatewaySettings)
    said = f"{raised.value} {capsys.readouterr().err}"
    assert words in said and "mysecret" not in said and "c2hvcnQ" not in said
