"""Whole models on several machines: pods that each run one, claim what needs an engine, and take over from one that is gone.

The gateway and the stand-in engines' processes are real, and so are the pods' claims and pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import wait_until
from prometheus_client import CollectorRegistry
from test_blue_green import ENGINE, Site

from prefloop.hosting.gateway import EngineDesk, WholeModel
from prefloop.hosting.pod import Pod
from prefloop.pages import start_pages
from prefloop.servers.ports import find_port
from prefloop.supervisor import Service, Supervisor

SILENT_S = 1.0  # of the test that a pod vanishes in
PATIENT_S = 60.0  # of the others, whose machines show no pages while an engine starts


class Machine:
    """A pod's machine: its supervisor, its pages, its loop. `vanish` is a machine that is gone."""

    def __init__(self, site: Site, name: str, host_port: int, silent_s: float) -> None:
        self.site, self.name, self.port = site, name, find_port()
        self.start_s = 0.0
        self.supervisor = Supervisor()
        key = site.app.secrets.admin_key
        self.desk = EngineDesk(site.url, lambda: key)
        self.pod = Pod(
            self.desk,
            f"http://127.0.0.1:{self.port}",
            self.supervisor,
            self.find_model,
            self.build_service,
            host_port=host_port,
            silent_s=silent_s,
        )
        self._running: asyncio.Task[None] | None = None

    async def find_model(self, model: WholeModel) -> Path:
        return Path(model.path)

    def build_service(self, model: WholeModel, path: Path) -> Service:
        argv = [sys.executable, str(ENGINE), "--model", str(path), "--served-model-name", model.checkpoint]
        argv += ["--port", str(self.port), "--start-s", str(self.start_s)]
        env = {"PYTHONPATH": os.pathsep.join((str(ENGINE.parent), str(ENGINE.parents[2])))}
        return Service(f"engine {model.checkpoint}", argv, self.site.root / "logs" / self.name, env)

    def start(self) -> None:
        self._running = asyncio.create_task(self.pod.run(0.05))

    async def pause(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def vanish(self) -> None:
        await self.pause()
        await self.supervisor.stop()
        await self.desk.aclose()

    @property
    def checkpoint(self) -> str | None:
        return self.pod.view().checkpoint


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    await site.start_gateway()
    yield site
    await site.stop_gateway()


@contextlib.asynccontextmanager
async def open_machines(
    site: Site, host_port: int, silent_s: float = PATIENT_S
) -> AsyncIterator[tuple[Machine, Machine]]:
    blue, green = (Machine(site, name, host_port, silent_s) for name in ("blue", "green"))
    try:
        yield blue, green
    finally:
        for machine in (blue, green):
            await machine.vanish()


async def test_two_pods_take_turns_with_whole_models(site: Site) -> None:
    async with open_machines(site, find_port()) as (blue, green):
        blue.start()
        green.start()
        first = await site.publish(0)
        await site.wait_for_stable(first)
        holder, other = (blue, green) if blue.checkpoint == first else (green, blue)
        assert other.checkpoint is None and other.pod.view().state == "free"
        second = await site.publish(1, first)
        rollout = await site.wait_for_trial(second)
        assert (holder.checkpoint, other.checkpoint) == (first, second)
        await site.promote(rollout)
        await site.wait_for_stable(second)
        await wait_until(lambda: holder.checkpoint is None and not holder.supervisor.states, 20)
        third = await site.publish(2, second)
        await site.wait_for_trial(third)
        assert (holder.checkpoint, other.checkpoint) == (third, second)


async def test_of_two_pods_that_claim_the_same_model_at_once_one_keeps_it(site: Site) -> None:
    async with open_machines(site, find_port()) as (blue, green):
        first = await site.publish(0)
        # Both saw that nobody has it, before either said anything.
        views = [await machine.desk.look() for machine in (blue, green)]
        await asyncio.gather(
            *(machine.pod._claim(view.wanted[0]) for machine, view in zip((blue, green), views, strict=True))
        )
        for machine in (blue, green):
            machine.start()
        await site.wait_for_stable(first)
        await wait_until(lambda: sorted(filter(None, (blue.checkpoint, green.checkpoint))) == [first])
        view = await blue.desk.look()
        assert len(view.list_claims(first)) == 1


async def test_a_free_pod_takes_over_from_one_that_is_gone_and_not_from_one_that_starts(site: Site) -> None:
    host_port = find_port()
    async with open_machines(site, host_port, SILENT_S) as (blue, green):
        blue.start_s = 3 * SILENT_S
        views = {"/status": lambda: asdict(blue.pod.view())}
        # Of blue's machine: both have one address.
        pages = start_pages("127.0.0.1", host_port, CollectorRegistry(), str, views)
        try:
            first = await site.publish(0)
            blue.start()
            await wait_until(lambda: blue.checkpoint == first)
            green.start()
            await site.wait_for_stable(first)  # it took three times as long as a silent engine is given
            await wait_until(
                lambda: blue.pod.view().state == "serving"
            )  # its own next look may come after the gateway's
            assert green.checkpoint is None
        finally:
            await asyncio.to_thread(pages.shutdown)
            pages.server_close()
        await blue.vanish()
        await wait_until(lambda: green.checkpoint == first, 20)
        await wait_until(lambda: green.pod.view().state == "serving", 20)
        await wait_until(
            lambda: site.app.context.deployment.engines[f"http://127.0.0.1:{green.port}"].proven == {first}, 20
        )
        assert [each.url for each in (await green.desk.look()).list_claims(first)] == [f"http://127.0.0.1:{green.port}"]


async def test_a_pod_that_is_started_again_goes_on_with_what_its_address_is_registered_for(site: Site) -> None:
    async with open_machines(site, find_port()) as (blue, _green):
        blue.start()
        first = await site.publish(0)
        await site.wait_for_stable(first)
        await blue.pause()
        await blue.supervisor.stop()
        again = Machine(site, "blue again", blue.pod._host_port, PATIENT_S)
        again.port = blue.port
        again.pod._url = f"http://127.0.0.1:{blue.port}"
        again.start()
        try:
            await wait_until(lambda: again.pod.view().state == "serving", 20)
            assert again.checkpoint == first and len((await again.desk.look()).list_claims(first)) == 1
            await again.pause()
            await again.pod.leave(1.0)
            assert (await again.desk.look()).list_claims(first) == []
        finally:
            await again.vanish()
