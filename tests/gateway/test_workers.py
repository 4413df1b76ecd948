"""Several workers of one gateway on one port, as real processes over a real PostgreSQL."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from gateway_process import find_port, launch, run_gateway_process

from prefloop.servers.postgres import Postgres
from tests.postgres import run_server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with run_server() as server:
        yield server


@pytest.fixture
def database_url(postgres: Postgres, request: pytest.FixtureRequest) -> str:
    return postgres.create_database(f"w_{abs(hash(request.node.name))}")


async def wait_until(is_true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_both_workers_answer_on_one_port_and_one_scrape_tells_of_both(tmp_path: Path, database_url: str) -> None:
    async with run_gateway_process(tmp_path, workers=2, database_url=database_url) as gateway:
        assert len(gateway.workers()) == 2
        for _ in range(40):
            await gateway.ask()
        of_each = [await gateway.metric("prefloop_requests_total", code="200", worker=str(n)) for n in (0, 1)]
        assert min(of_each) > 0
        assert sum(of_each) == 40
        assert await gateway.metric("prefloop_worker_up") == 2
        assert await gateway.metric("process_cpu_seconds_total", worker="1") > 0
        _, text = await gateway.get("/metrics")
        assert text.count("# TYPE prefloop_requests_total counter") == 1
        assert all('worker="' in line for line in text.splitlines() if not line.startswith("#"))


async def test_a_new_key_works_at_every_worker_at_once(tmp_path: Path, database_url: str) -> None:
    async with run_gateway_process(tmp_path, workers=2, database_url=database_url) as gateway:
        for _ in range(4):
            gateway.key = await gateway.make_key()
            for _ in range(8):
                await gateway.ask()


async def test_a_comparison_of_one_worker_is_chosen_at_the_other(tmp_path: Path, database_url: str) -> None:
    async with run_gateway_process(tmp_path, workers=2, database_url=database_url) as gateway:
        for _ in range(12):
            comparison = (await gateway.ask(**{"x-prefloop-compare": "always"}))["comparison"]
            choice = {"preferred": "first", "token": comparison["token"]}
            path = f"/v1/comparisons/{comparison['id']}/choice"
            assert [(await gateway.post(path, choice))[0] for _ in range(3)] == [200] * 3
        assert await gateway.metric("prefloop_choices_total") == 12


async def test_a_killed_worker_is_replaced_while_the_other_serves(tmp_path: Path, database_url: str) -> None:
    async with run_gateway_process(tmp_path, workers=2, database_url=database_url) as gateway:
        before = gateway.workers()
        os.kill(before[0], signal.SIGKILL)
        await wait_until(lambda: before[0] not in gateway.workers())
        for _ in range(10):
            await gateway.ask()
        await wait_until(lambda: len(gateway.workers()) == 2)
        assert before[1] in gateway.workers()
        async with asyncio.timeout(20):
            while await gateway.metric("prefloop_worker_up") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert "worker 0 died, status -9" in gateway.log or "worker 1 died, status -9" in gateway.log


async def test_a_signal_lets_requests_end_at_every_worker(tmp_path: Path, database_url: str) -> None:
    async with run_gateway_process(tmp_path, workers=2, database_url=database_url) as gateway:
        gateway.engine.delay_s = 1.0
        waiting = [asyncio.create_task(gateway.ask()) for _ in range(8)]
        await wait_until(lambda: len(gateway.engine.requests) == 8)
        gateway.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*waiting)
        assert [answer["model"] for answer in answers] == ["default"] * 8
        assert await asyncio.wait_for(gateway.process.wait(), 10) == 0


async def test_the_workers_end_when_their_parent_is_killed(tmp_path: Path, database_url: str) -> None:
    async with run_gateway_process(tmp_path, workers=2, database_url=database_url) as gateway:
        workers = gateway.workers()
        gateway.process.kill()
        await gateway.process.wait()
        await wait_until(lambda: not any(is_running(pid) for pid in workers))
        with pytest.raises(aiohttp.ClientConnectionError):
            await gateway.get("/livez")


async def test_workers_on_sqlite_are_refused(tmp_path: Path) -> None:
    assert "PostgreSQL" in await fail_to_start(tmp_path, {"PREFLOOP_GATEWAY__WORKERS": "2"})


async def test_workers_do_not_share_the_port_of_another_gateway(tmp_path: Path, database_url: str) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        log = await fail_to_start(
            tmp_path,
            {
                "PREFLOOP_GATEWAY__WORKERS": "2",
                "PREFLOOP_GATEWAY__PORT": str(port),
                "PREFLOOP_GATEWAY__DATABASE_URL": database_url,
            },
        )
    assert f"cannot listen on 127.0.0.1:{port}" in log


async def fail_to_start(tmp_path: Path, env: dict[str, str]) -> str:
    """The log of a gateway that ended with status 2."""
    env = {"PREFLOOP_GATEWAY__PORT": str(find_port()), **env}
    process = await launch(tmp_path / "state", tmp_path / "gateway.log", env)
    assert await asyncio.wait_for(process.wait(), 20) == 2
    return (tmp_path / "gateway.log").read_text()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
