"""A database that fails under a running gateway: completions go on, choices are refused or kept, and it recovers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from gateway_process import GatewayProcess, find_port, launch, run_gateway_process

from feedback.choices import choices, outbox
from feedback.database import open_database
from prefloop.servers.postgres import Postgres
from tests.faults import Faults
from tests.postgres import run_server

PAIR = {"x-prefloop-compare": "always"}


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with run_server() as server:
        yield server


@dataclass
class Traffic:
    """People who ask, are shown two answers, and choose; what they were told."""

    gateway: GatewayProcess
    num_answers: int = 0
    slowest_s: float = 0.0
    shown: list[dict[str, str]] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    refused: list[tuple[int, str | None]] = field(default_factory=list)  # status, Retry-After

    async def ask(self) -> dict[str, str] | None:
        """Ask for two answers: the comparison, if there is one. Fails unless it is answered."""
        began = time.monotonic()
        answer = await self.gateway.ask(**PAIR)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.num_answers += 1
        comparison = answer.get("comparison")
        if comparison is not None:
            self.shown.append(comparison)
        return comparison

    async def choose(self, comparison: dict[str, str]) -> int:
        """The status; 200 is noted as acknowledged."""
        path, body = f"/v1/comparisons/{comparison['id']}/choice", {"preferred": "first", "token": comparison["token"]}
        status, headers, _ = await self.gateway.post(path, body)
        if status == 200:
            self.acknowledged.add(comparison["id"])
        else:
            self.refused.append((status, headers.get("retry-after")))
        return status

    async def run(self) -> None:
        """Ask and choose until cancelled."""
        while True:
            comparison = await self.ask()
            if comparison is not None:
                await self.choose(comparison)

    async def choose_the_rest(self) -> None:
        """Send what was not acknowledged again, as clients do."""
        for comparison in self.shown:
            if comparison["id"] not in self.acknowledged:
                assert await self.choose(comparison) == 200


@contextlib.asynccontextmanager
async def busy(gateway: GatewayProcess, num_people: int = 4) -> AsyncIterator[Traffic]:
    """Traffic for as long as the block runs; fails if a request of it failed."""
    traffic = Traffic(gateway)
    people = [asyncio.create_task(traffic.run()) for _ in range(num_people)]
    try:
        yield traffic
    finally:
        for person in people:
            person.cancel()
        ended = await asyncio.gather(*people, return_exceptions=True)
    assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended


async def wait_until(is_true: object, timeout_s: float = 20.0) -> None:
    assert callable(is_true)
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def list_stored(url: str) -> list[str]:
    """The ids of the comparisons whose choice is stored."""
    engine = open_database(url)
    with engine.connect() as connection:
        stored = list(connection.execute(sa.select(choices.c.comparison_id)).scalars())
        assert connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one() <= len(stored)
    engine.dispose()
    return stored


def check_nothing_was_lost(traffic: Traffic, url: str) -> None:
    stored = list_stored(url)
    assert len(stored) == len(set(stored))
    assert traffic.acknowledged <= set(stored)
    assert all(refused == (503, "1") for refused in traffic.refused), traffic.refused


async def test_a_postgresql_that_is_killed_stops_neither_answers_nor_the_choices_after_it(
    tmp_path: Path, postgres: Postgres
) -> None:
    url = postgres.create_database("outage")
    async with run_gateway_process(tmp_path, database_url=url) as gateway:
        async with busy(gateway) as traffic:
            for _ in range(2):
                before = len(traffic.acknowledged)
                await wait_until(lambda before=before: len(traffic.acknowledged) > before + 20)
                comparison = traffic.shown[-1]
                postgres.kill()
                assert await traffic.choose(comparison) in (200, 503)
                answered = traffic.num_answers
                await wait_until(lambda answered=answered: traffic.num_answers > answered + 200)
                assert (await gateway.get("/metrics"))[0] == 200
                assert (await gateway.get("/readyz"))[0] == 200  # it serves
                postgres.start()
                before = len(traffic.acknowledged)
                await wait_until(lambda before=before: len(traffic.acknowledged) > before + 20)
        await traffic.choose_the_rest()
        assert traffic.refused, "the outage refused nobody"
        assert traffic.slowest_s < 2.0
        assert await gateway.metric("prefloop_not_paired_total", reason="database") > 200
        check_nothing_was_lost(traffic, url)
        assert set(list_stored(url)) == {comparison["id"] for comparison in traffic.shown}


async def test_a_postgresql_that_hangs_holds_nobody_up(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.create_database("outage")
    async with run_gateway_process(tmp_path, database_url=url) as gateway:
        traffic = Traffic(gateway)
        comparison = await traffic.ask()
        assert comparison is not None
        with frozen(postgres):
            choosing = asyncio.create_task(traffic.choose(comparison))
            await asyncio.sleep(1.5)  # the writer has been busy for over a second
            for _ in range(50):
                assert await traffic.ask() is None
            assert (await gateway.get("/metrics"))[0] == 200
            assert await asyncio.wait_for(choosing, 6) == 503
        assert traffic.slowest_s < 1.5
        await traffic.choose_the_rest()
        async with asyncio.timeout(10):
            while await traffic.ask() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        check_nothing_was_lost(traffic, url)


@contextlib.contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """No process of the server moves, and no connection is closed."""
    pids = [server.pid, *map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def test_a_gateway_waits_at_its_start_for_a_postgresql_that_is_down(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.create_database("outage")
    postgres.kill()

    async def start_later() -> None:
        await wait_until(lambda: "the database does not answer" in read_log(tmp_path))
        await asyncio.to_thread(postgres.start)

    starting = asyncio.create_task(start_later())
    async with run_gateway_process(tmp_path, database_url=url) as gateway:
        await starting
        assert await Traffic(gateway).ask() is not None


async def test_a_gateway_whose_postgresql_stays_away_says_so_and_ends(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.create_database("outage").replace("prefloop@", "prefloop:secret@")
    postgres.kill()
    env = {
        "PREFLOOP_GATEWAY__PORT": str(find_port()),
        "PREFLOOP_GATEWAY__DATABASE_URL": url,
        "PREFLOOP_GATEWAY__DATABASE_WAIT_S": "0.5",
    }
    process = await launch(tmp_path / "state", tmp_path / "gateway.log", env)
    assert await asyncio.wait_for(process.wait(), 20) == 1
    log = read_log(tmp_path)
    assert "did not answer within 0.5 s" in log and "secret" not in log and "Traceback" not in log


def read_log(tmp_path: Path) -> str:
    path = tmp_path / "gateway.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("fault", ["fsync EIO", "disk full"])
async def test_a_disk_that_fails_loses_no_acknowledged_choice(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(tmp_path, "gateway.db")
    for name, value in faults.env.items():
        monkeypatch.setenv(name, value)
    url = f"sqlite:{tmp_path / 'state' / 'gateway.db'}"
    async with run_gateway_process(tmp_path) as gateway:
        async with busy(gateway) as traffic:
            await wait_until(lambda: len(traffic.acknowledged) > 20)
            undecided = [comparison for _ in range(20) if (comparison := await traffic.ask())]
            faults.fail_syncs() if fault == "fsync EIO" else faults.fail_writes()
            for comparison in undecided:  # whichever of its writes are in files that have room, one is not
                assert await traffic.choose(comparison) in (200, 503)
                if traffic.refused:
                    break
            answered = traffic.num_answers
            await wait_until(lambda: traffic.num_answers > answered + 50)
            faults.heal()
            before = len(traffic.acknowledged)
            await wait_until(lambda: len(traffic.acknowledged) > before + 20)
        assert faults.num_failed_syncs if fault == "fsync EIO" else faults.num_failed_writes
        assert await gateway.metric("prefloop_not_paired_total", reason="database") > 0
        assert traffic.refused, "the fault refused nobody"
        await traffic.choose_the_rest()
        gateway.process.kill()  # what was acknowledged is on the disk
        await gateway.process.wait()
    check_nothing_was_lost(traffic, url)
    check_integrity(url)


def check_integrity(url: str) -> None:
    engine = open_database(url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    engine.dispose()


@pytest.mark.parametrize("hours", [2, -2])
async def test_a_clock_that_jumps_loses_no_acknowledged_choice(
    tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(tmp_path, "gateway.db")
    for name, value in faults.env.items():
        monkeypatch.setenv(name, value)
    async with run_gateway_process(tmp_path) as gateway:
        traffic = Traffic(gateway)
        early = [await traffic.ask() for _ in range(3)]
        assert all(early)
        assert await traffic.choose(early[0] or {}) == 200
        faults.shift_clock(hours * 3600)
        async with busy(gateway) as later:
            await wait_until(lambda: len(later.acknowledged) > 20)
        assert faults.num_shifted_reads > 0
        assert later.refused == []
        assert await traffic.choose(early[0] or {}) == 200  # replayed, however late
        # Comparisons live an hour: two hours later they are gone, two hours earlier they are still open.
        assert await traffic.choose(early[1] or {}) == (410 if hours > 0 else 200)
        assert await gateway.make_key()
        faults.shift_clock(0)
        async with busy(gateway) as back:
            await wait_until(lambda: len(back.acknowledged) > 20)
        assert await traffic.choose(early[2] or {}) == 200
        assert (await gateway.get("/readyz"))[0] == 200
        assert gateway.process.returncode is None
        stored = list_stored(f"sqlite:{tmp_path / 'state' / 'gateway.db'}")
        assert traffic.acknowledged | later.acknowledged | back.acknowledged <= set(stored)
        assert "Traceback" not in gateway.log
