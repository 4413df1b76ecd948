"""A gateway whose engines are the addresses of a name: they come, go, die and come back while it serves."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Running, run_gateway, wait_until
from engine_process import EngineProcess

from gateway.engines.engine import EngineState
from prefloop.servers.dns import DnsServer

NAME = "engine.prefloop.svc"


@dataclass
class Fleet:
    """A gateway, the DNS it asks, and engines that share a port on addresses of their own."""

    gateway: Running
    dns: DnsServer
    port: int
    processes: dict[str, EngineProcess] = field(default_factory=dict)

    @property
    def states(self) -> dict[str, EngineState]:
        return {
            state.url.partition("://")[2].rpartition(":")[0]: state for state in self.gateway.context.deployment.states
        }

    def name(self, *hosts: str) -> None:
        self.dns.zone[NAME] = list(hosts)

    async def start(self, host: str) -> EngineProcess:
        process = self.processes[host] = EngineProcess(host=host, port=self.port)
        await process.start()
        return process

    async def ask(self, num: int = 24) -> dict[str, int]:
        """So many conversations at once; which engine answered how many."""
        before = {host: len(process.requests) for host, process in self.processes.items()}
        headers = [{"x-prefloop-conversation": f"conversation {i}"} for i in range(num)]
        answers = await asyncio.gather(*(self.gateway.ask(each) for each in headers))
        assert all(answer["choices"] for answer in answers)
        return {host: len(process.requests) - before[host] for host, process in self.processes.items()}

    async def wait_for_use(self, *hosts: str) -> None:
        def is_used(host: str) -> bool:
            state = self.states.get(host)
            return state is not None and state.is_usable and bool(state.proven)

        await wait_until(lambda: all(map(is_used, hosts)))


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    dns = DnsServer()
    await dns.start()
    first = EngineProcess(host="127.0.0.2")
    await first.start()
    dns.zone[NAME] = ["127.0.0.2"]
    async with run_gateway(
        tmp_path, engines=[f"dns+http://{NAME}:{first.port}"], dns_server=dns.address, resolve_s=0.1, reconcile_s=0.2,
    ) as gateway:  # fmt: skip
        fleet = Fleet(gateway, dns, first.port, {"127.0.0.2": first})
        await fleet.wait_for_use("127.0.0.2")
        yield fleet
    for process in fleet.processes.values():
        await process.kill()
    await dns.stop()


async def test_an_engine_that_gets_an_address_in_dns_is_used_once_it_has_proven_its_adapters(fleet: Fleet) -> None:
    assert await fleet.ask() == {"127.0.0.2": 24}
    new = await fleet.start("127.0.0.3")
    fleet.name("127.0.0.2", "127.0.0.3")
    await fleet.wait_for_use("127.0.0.3")
    assert new.loads and new.probes  # loaded and asked, by the gateway alone
    answered = await fleet.ask()
    assert answered["127.0.0.3"] > 0 and sum(answered.values()) == 24
    assert fleet.states["127.0.0.3"].source == f"dns+http://{NAME}:{fleet.port}"


async def test_an_engine_that_answers_wrongly_is_found_and_never_asked(fleet: Fleet) -> None:
    wrong = EngineProcess(host="127.0.0.3", port=fleet.port, probe_logprobs=[0.0, 0.0, 0.0])
    fleet.processes["127.0.0.3"] = wrong
    await wrong.start()
    fleet.name("127.0.0.2", "127.0.0.3")
    await wait_until(lambda: len(wrong.probes) > 0)
    assert await fleet.ask() == {"127.0.0.2": 24, "127.0.0.3": 0}


async def test_an_engine_whose_address_goes_ends_its_requests_and_gets_no_more(fleet: Fleet) -> None:
    old = fleet.processes["127.0.0.2"]
    await fleet.start("127.0.0.3")
    fleet.name("127.0.0.2", "127.0.0.3")
    await fleet.wait_for_use("127.0.0.3")
    old.delay_s = 1.0
    asked = asyncio.create_task(fleet.ask())
    await wait_until(lambda: len(old.requests) > 2)
    state = fleet.states["127.0.0.2"]
    fleet.name("127.0.0.3")
    await wait_until(lambda: "127.0.0.2" not in fleet.states)
    assert state.num_in_flight > 0
    answered = await asked  # all of them, by the one that was let go too
    assert answered["127.0.0.2"] > 2 and old.num_aborted == 0
    assert (await fleet.ask())["127.0.0.2"] == 0
    await wait_until(lambda: state.url not in fleet.gateway.context.deployment.engines)
    fleet.name("127.0.0.2", "127.0.0.3")  # and it comes back
    old.delay_s = 0.0
    await fleet.wait_for_use("127.0.0.2")
    assert (await fleet.ask())["127.0.0.2"] > 0


async def test_dns_that_fails_or_knows_nobody_takes_no_engine_away(fleet: Fleet) -> None:
    [state] = fleet.states.values()
    fleet.name()
    for change in ("empty", "unknown", "failing", "silent"):
        if change == "unknown":
            del fleet.dns.zone[NAME]
        fleet.dns.failing = {"A", "AAAA"} if change == "failing" else set()
        fleet.dns.is_silent = change == "silent"
        num_asked = sum(fleet.dns.num_asked.values())
        if change == "silent":
            await asyncio.sleep(0.5)
        else:
            await wait_until(lambda before=num_asked: sum(fleet.dns.num_asked.values()) > before + 4)
        assert fleet.states == {"127.0.0.2": state} and await fleet.ask(4) == {"127.0.0.2": 4}, change
    metrics = fleet.gateway.context.metrics.render().decode()
    counts = {
        line.split('outcome="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith("prefloop_engine_lookups_total")
    }
    assert counts["found"] > 0 and counts["empty"] > 1 and counts["failed"] > 0


async def test_an_engine_that_dies_is_out_at_once_and_back_with_its_adapters_without_anyone_asking(
    fleet: Fleet,
) -> None:
    victim = await fleet.start("127.0.0.3")
    fleet.name("127.0.0.2", "127.0.0.3")
    await fleet.wait_for_use("127.0.0.3")
    await victim.kill()
    killed_at = time.monotonic()
    assert sum((await fleet.ask()).values()) == 24  # nobody sees an error
    await wait_until(lambda: not fleet.states["127.0.0.3"].up)
    assert time.monotonic() - killed_at < 2.0
    await victim.restart()
    await fleet.wait_for_use("127.0.0.3")
    assert (await fleet.ask())["127.0.0.3"] > 0


async def test_an_engine_has_an_address_of_either_kind(fleet: Fleet) -> None:
    try:
        await fleet.start("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    fleet.name("127.0.0.2", "::1")
    await fleet.wait_for_use("[::1]")
    answered = await fleet.ask()
    assert answered["::1"] > 0
    assert fleet.processes["::1"].headers[0]["host"] == f"[::1]:{fleet.port}"


async def test_operators_see_where_an_engine_comes_from_and_cannot_register_a_whole_model_there(fleet: Fleet) -> None:
    gateway = fleet.gateway
    async with gateway.http.get(f"{gateway.url}/operator/v1/engines", headers=gateway.admin) as answer:
        [engine] = (await answer.json())["data"]
    assert engine["source"] == f"dns+http://{NAME}:{fleet.port}"
    body = {"url": engine["url"], "checkpoint": "whole"}
    async with gateway.http.post(f"{gateway.url}/operator/v1/engines", json=body, headers=gateway.admin) as answer:
        assert answer.status == 409 and "found by" in (await answer.json())["error"]["message"]


async def test_an_engine_that_dies_while_nobody_asks_is_out_before_the_next_look(tmp_path: Path) -> None:
    process, other = EngineProcess(), EngineProcess()
    for each in (process, other):
        await each.start()
    async with run_gateway(tmp_path, engines=[process.url, other.url], reconcile_s=3.0) as gateway:
        state = gateway.context.deployment.engines[process.url]
        await wait_until(lambda: bool(state.proven))
        await asyncio.sleep(0.3)  # the look is over, the next one is far
        await process.kill()
        killed_at = time.monotonic()
        await wait_until(lambda: not state.up)
        assert time.monotonic() - killed_at < 1.0
    await other.kill()
