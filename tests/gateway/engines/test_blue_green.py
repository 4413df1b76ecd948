"""Whole models take turns: an engine beside the first, started, proven, tried, promoted; the old one drained and ended.

The gateway, the host and the stand-in engines' processes are real; only what the engines compute is not.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import sqlalchemy as sa
import uvicorn
from conftest import make_settings, wait_until
from full_engine import make_full_checkpoint

from bench.swap.load import Load
from bench.swap.sentences import judge
from feedback import choices
from feedback.events import Comparison
from gateway.app import Gateway, create_app
from gateway.http.server import build_server
from gateway.settings import GatewaySettings
from prefloop.engine_host import EngineHost, RequiredModel
from prefloop.supervisor import Service, Supervisor

ENGINE = Path(__file__).parents[1] / "full_engine.py"
ROLLOUT = {"tick_s": 0.02, "steps": [{"weight": 0.5}], "duel_share": 1.0, "report_s": 0.05, "baking_s": 0.3}


class Site:
    """A gateway that can be restarted on its port, and beside it the host with its engines."""

    def __init__(self, root: Path, **rollout: Any) -> None:
        self.root = root
        settings = make_settings(root, 1, engines=[], connect_wait_s=20.0).model_dump()
        settings["rollout"] |= ROLLOUT | rollout
        self.settings = GatewaySettings.model_validate(settings)
        self.start_s = 0.0
        self.port = 0
        self.app: Gateway
        self._server: uvicorn.Server
        self.supervisor = Supervisor()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> dict[str, int | None]:
        """By checkpoint."""
        return {name.split()[1]: state.pid for name, state in self.supervisor.states.items()}

    async def start_gateway(self) -> None:
        self.app = create_app(self.settings)
        self._server = build_server(self.app, host="127.0.0.1", port=self.port, drain_timeout_s=5)
        self._serving = asyncio.create_task(self._server.serve())
        await wait_until(lambda: self._server.started or self._serving.done())
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    async def stop_gateway(self) -> None:
        self._server.should_exit = True
        await self._serving

    async def restart_gateway(self) -> None:
        await self.stop_gateway()
        await self.start_gateway()

    def start_host(self) -> EngineHost:
        key = self.app.secrets.admin_key
        host = EngineHost(self.url, lambda: key, self.supervisor, self.build_service, poll_s=0.05)
        self.supervisor.run_beside(host.run())
        return host

    def build_service(self, wanted: RequiredModel, port: int) -> Service:
        argv = [sys.executable, str(ENGINE), "--model", wanted.path, "--served-model-name", wanted.checkpoint]
        argv += ["--port", str(port), "--start-s", str(self.start_s)]
        env = {"PYTHONPATH": os.pathsep.join((str(ENGINE.parent), str(ENGINE.parents[2])))}
        return Service(f"engine {wanted.checkpoint}", argv, self.root / "logs" / wanted.checkpoint, env)

    # -- as an operator

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {self.app.secrets.admin_key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, f"{self.url}/operator/v1{path}", json=body, params=query) as answer,
        ):
            return answer.status, await answer.json()

    async def publish(self, number: int, parent: str | None = None, *, is_wrong: bool = False) -> str:
        path = make_full_checkpoint(self.root / "checkpoints", number, parent, is_wrong=is_wrong)
        status, said = await self.call("POST", "/checkpoints", {"path": str(path)})
        assert status == 201, said
        return path.name

    async def wait_for(self, what: str, is_true: Any) -> dict[str, Any]:
        said: dict[str, Any] = {}
        try:
            async with asyncio.timeout(20):
                while True:
                    _, said = await self.call("GET", "/status")
                    if is_true(said):
                        return said
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"no {what}: {json.dumps(said)[:3000]}") from None

    async def wait_for_stable(self, checkpoint: str) -> None:
        await self.wait_for(f"stable {checkpoint}", lambda s: (s["stable"] or {}).get("id") == checkpoint)
        await wait_until(lambda: self.app.context.deployment.view.stable == checkpoint)

    async def wait_for_phase(self, *phases: str) -> dict[str, Any]:
        return await self.wait_for(str(phases), lambda s: s["rollout"] is not None and s["rollout"]["phase"] in phases)

    async def wait_for_trial(self, checkpoint: str) -> str:
        said = await self.wait_for("trial", lambda s: (s["canary"] or {}).get("id") == checkpoint and s["rollout"])
        return str(said["rollout"]["id"])

    async def promote(self, rollout: str) -> None:
        status, said = await self.call("POST", f"/rollouts/{rollout}:promote", {"note": "It is fine."})
        assert status == 200, said

    async def wait_for_end(self, checkpoint: str) -> None:
        """Until its engine is withdrawn and its process gone."""
        await wait_until(lambda: checkpoint not in self.pids, 20)
        async with asyncio.timeout(5):
            while checkpoint in await self.list_engines():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def list_engines(self) -> set[str]:
        """The checkpoints that want an engine, or have one that is known."""
        _, said = await self.call("GET", "/engines")
        return {row["checkpoint"] for row in (*said["wanted"], *said["data"])}

    async def status_of(self, checkpoint: str) -> str:
        _, said = await self.call("GET", "/checkpoints")
        return next(str(row["status"]) for row in said["data"] if row["id"] == checkpoint)

    async def swap_to(self, number: int, old: str, load: Load | None = None) -> str:
        """The next whole model through its whole walk; returns it."""
        new = await self.publish(number, old)
        rollout = await self.wait_for_trial(new)
        if load is not None:
            load.pinned = new
            await asyncio.sleep(0.3)
        await self.promote(rollout)
        await self.wait_for_stable(new)
        await self.wait_for_end(old)
        return new


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


@contextlib.asynccontextmanager
async def open_site(root: Path, **rollout: Any) -> AsyncIterator[Site]:
    site = Site(root, **rollout)
    await site.start_gateway()
    site.start_host()
    try:
        yield site
    finally:
        await site.supervisor.stop()
        await site.stop_gateway()


async def start_load(site: Site) -> tuple[Load, asyncio.Task[None]]:
    _, key = await site.call("POST", "/keys", {"name": "b", "scope": "app operator", "pairs": True})
    load = Load(site.url, key["key"], num_connections=12)
    return load, asyncio.create_task(load.run())


def read_comparisons(site: Site) -> list[Comparison]:
    with site.app.context.database.connect() as conn:
        bodies = conn.execute(sa.select(choices.comparisons.c.body)).scalars().all()
    return [msgspec.json.decode(body, type=Comparison) for body in bodies]


async def test_whole_models_take_turns_under_load_and_no_request_notices(site: Site) -> None:
    first = await site.publish(0)
    await site.wait_for_stable(first)
    load, loading = await start_load(site)
    second = await site.swap_to(1, first, load)
    third = await site.swap_to(2, second, load)
    load.stop()
    await loading
    tally = load.tally
    assert (tally.failed, tally.truncated, tally.wrong_checkpoint) == (0, 0, 0), tally.examples
    assert set(tally.requests) == {"single", "stream", "pair", "pair stream", "pinned"}
    assert {first, second, third} == tally.by_checkpoint.keys()
    shown = read_comparisons(site)
    assert {comparison.asked for comparison in shown} == {"duel"} and len(shown) == tally.comparisons > 0
    for candidate in (c for comparison in shown for c in (comparison.first, comparison.second)):
        assert judge(candidate.text, candidate.checkpoint) == "right"
    assert list(site.pids) == [third]
    assert site.app.context.deployment.all_in_flight() == {}
    assert await site.status_of(first) == await site.status_of(second) == "retired"


async def test_nothing_serves_by_a_whole_model_before_its_engine_has_passed_the_probe(site: Site) -> None:
    first = await site.publish(0)
    await site.wait_for_stable(first)
    site.start_s = 0.6
    second = await site.publish(1, first)
    await wait_until(lambda: second in site.pids)
    said = await site.wait_for_phase("Pending")
    assert said["canary"] is None and site.app.context.deployment.view.canary is None
    _, engines = await site.call("GET", "/engines")
    assert [row["checkpoint"] for row in engines["wanted"]] == [first, second]
    assert [row["checkpoint"] for row in engines["data"]] == [first]
    await site.wait_for_trial(second)


async def test_an_engine_that_is_killed_while_it_starts_is_started_again(site: Site) -> None:
    first = await site.publish(0)
    await site.wait_for_stable(first)
    site.start_s = 0.5
    second = await site.publish(1, first)
    await wait_until(lambda: site.pids.get(second) is not None)
    killed = site.pids[second]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await site.promote(await site.wait_for_trial(second))
    assert site.pids[second] != killed
    await site.wait_for_stable(second)
    await site.wait_for_end(first)


async def test_requests_wait_for_the_engine_of_stable_that_was_killed_and_it_proves_itself_again(site: Site) -> None:
    first = await site.publish(0)
    await site.wait_for_stable(first)
    load, loading = await start_load(site)
    await wait_until(lambda: load.tally.num_requests > 50)
    killed = site.pids[first]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await wait_until(lambda: site.pids[first] not in (None, killed))
    num_before = load.tally.by_checkpoint[first]
    await wait_until(lambda: load.tally.by_checkpoint[first] > num_before + 20, 20)
    load.stop()
    await loading
    assert load.tally.wrong_checkpoint == 0
    broken = [line for line in load.tally.examples if "stopped in the middle" not in line]
    assert not broken, broken  # a stream that had begun cannot go on; all else is asked again


async def test_a_gateway_that_is_restarted_in_any_phase_goes_on_where_it_was(site: Site) -> None:
    first = await site.publish(0)
    await site.wait_for_stable(first)
    site.start_s = 0.5
    second = await site.publish(1, first)
    await site.wait_for_phase("Pending")
    await site.restart_gateway()
    rollout = await site.wait_for_trial(second)
    pids = site.pids
    await site.restart_gateway()
    assert await site.wait_for_trial(second) == rollout
    await site.promote(rollout)
    await site.wait_for_phase("Baking")
    await site.restart_gateway()
    await site.wait_for_stable(second)
    assert site.pids.items() <= pids.items()  # the host let the engines be
    await site.restart_gateway()
    await site.wait_for_end(first)
    assert site.pids == {second: pids[second]}
    await site.wait_for_stable(second)


async def test_weights_that_are_not_those_of_the_manifest_never_serve(site: Site) -> None:
    first = await site.publish(0)
    await site.wait_for_stable(first)
    load, loading = await start_load(site)
    wrong = await site.publish(1, first, is_wrong=True)
    await wait_until(lambda: site.pids.get(wrong) is not None)
    await site.wait_for("the end", lambda s: s["rollout"] is None)
    _, said = await site.call("GET", "/rollouts")
    assert (said["data"][0]["phase"], said["data"][0]["reason"]) == ("Degraded", "LoadFailed")
    load.stop()
    await loading
    assert load.tally.failed == 0 and load.tally.by_checkpoint.keys() == {first}
    assert site.app.context.deployment.first_answer_at.keys() == {first}
    await site.wait_for_end(wrong)


async def test_rolling_back_is_at_once_while_baking_and_without_a_trial_later(tmp_path: Path) -> None:
    async with open_site(tmp_path, baking_s=2.0) as site:
        first = await site.publish(0)
        await site.wait_for_stable(first)
        second = await site.publish(1, first)
        await site.promote(await site.wait_for_trial(second))
        await site.wait_for_phase("Baking")
        pid = site.pids[first]
        status, _ = await site.call("POST", "/rollouts:rollback", {})
        assert status == 200
        await site.wait_for_stable(first)
        assert site.pids[first] == pid
        await site.wait_for_end(second)
        third = await site.swap_to(2, first)
        status, _ = await site.call("POST", "/rollouts:rollback", {})
        assert status == 200
        await site.wait_for_stable(first)
        await site.wait_for_end(third)


async def test_a_whole_model_whose_engine_never_comes_is_given_up(tmp_path: Path) -> None:
    async with open_site(tmp_path, engine_start_s=1.0) as site:
        first = await site.publish(0)
        await site.wait_for_stable(first)
        site.start_s = 3600.0
        second = await site.publish(1, first)
        await wait_until(lambda: second in site.pids)
        await site.wait_for("the end", lambda s: s["rollout"] is None)
        await site.wait_for_end(second)
        assert await site.status_of(second) == "retired"


async def test_stable_is_tried_against_itself_by_a_second_engine(site: Site) -> None:
    first = await site.publish(0)
    await site.wait_for_stable(first)
    status, copy = await site.call("POST", "/rollouts", {"aa": True})
    assert status == 201
    await site.wait_for_trial(copy["id"])
    assert site.pids.keys() == {first, copy["id"]}


async def test_what_a_dead_host_left_registered_is_withdrawn_and_what_others_run_is_left_alone(site: Site) -> None:
    first = await site.publish(0)
    await site.wait_for_stable(first)
    for url in ("http://127.0.0.1:1", "http://10.0.0.1:8000"):
        status, _ = await site.call("POST", "/engines", {"url": url, "checkpoint": first})
        assert status == 201
    urls: set[str] = set()
    async with asyncio.timeout(10):
        while len(urls) != 2:
            _, said = await site.call("GET", "/engines")
            urls = {row["url"] for row in said["data"]}
            await asyncio.sleep(0.02)
    assert "http://10.0.0.1:8000" in urls and "http://127.0.0.1:1" not in urls
