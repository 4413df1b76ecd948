"""Names asked of a real DNS server."""

from collections.abc import AsyncIterator

import pytest

from gateway.engines import resolver as module
from gateway.engines.resolver import Resolver
from prefloop.servers.dns import DnsServer


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    server = DnsServer({"engine.prefloop": ["10.0.0.2", "10.0.0.1", "fd00::1"], "four": ["10.0.0.9"], "none": []})
    await server.start()
    yield server
    await server.stop()


async def test_a_name_has_its_addresses_of_both_kinds_in_order(server: DnsServer) -> None:
    found = await Resolver(server.address).look_up("engine.prefloop")
    assert found.addresses == {"A": ("10.0.0.1", "10.0.0.2"), "AAAA": ("fd00::1",)} and not found.problem


async def test_every_lookup_asks_anew(server: DnsServer) -> None:
    resolver = Resolver(server.address)
    assert (await resolver.look_up("four")).addresses["A"] == ("10.0.0.9",)
    server.zone["four"] = ["10.0.0.8"]
    assert (await resolver.look_up("four")).addresses == {"A": ("10.0.0.8",), "AAAA": ()}
    assert server.num_asked == {"A": 2, "AAAA": 2}


@pytest.mark.parametrize("name", ["unknown", "none"])
async def test_a_name_that_does_not_exist_and_one_without_addresses_have_none_and_nothing_went_wrong(
    server: DnsServer, name: str
) -> None:
    found = await Resolver(server.address).look_up(name)
    assert found.addresses == {"A": (), "AAAA": ()} and not found.problem


async def test_an_answer_that_does_not_fit_is_asked_for_over_tcp(server: DnsServer) -> None:
    server.zone["many"] = [f"10.0.1.{i}" for i in range(60)]
    found = await Resolver(server.address).look_up("many")
    assert len(found.addresses["A"] or ()) == 60 and server.num_tcp == 1


async def test_a_kind_that_fails_is_told_from_one_that_has_no_addresses(server: DnsServer) -> None:
    server.failing = {"AAAA"}
    found = await Resolver(server.address).look_up("engine.prefloop")
    assert found.addresses == {"A": ("10.0.0.1", "10.0.0.2"), "AAAA": None} and "AAAA" in found.problem


async def test_a_server_that_is_silent_or_away_is_a_problem_and_no_answer(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIFETIME_S", 0.3)
    server.is_silent = True
    found = await Resolver(server.address).look_up("four")
    assert found.addresses == {"A": None, "AAAA": None} and found.problem
    found = await Resolver("127.0.0.1:9").look_up("four")
    assert found.addresses == {"A": None, "AAAA": None} and found.problem
