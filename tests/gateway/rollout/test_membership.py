"""Several gateways on one database: who leads, who follows, and that nobody unloads what another one serves."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from conftest import start_engine
from engine_process import Caller, EngineProcess, reconcile_engines
from full_engine import FullEngine, make_full_checkpoint

from bench.gateway.checkpoints import make_checkpoint
from feedback.database import Writer, create_tables, metadata, open_database
from feedback.relay import RelayState
from gateway.engines.deployment import Deployment
from gateway.engines.discovery import Discovery
from gateway.engines.swap import Swap
from gateway.rollout.assessment import Assessor
from gateway.rollout.controller import Controller
from gateway.rollout.membership import Membership, find_unload_blockers
from gateway.rollout.pure import machine
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import get_checkpoint
from gateway.tables.gateways import Report, take_lease
from gateway.tables.rollouts import list_rollouts
from gateway.tables.rows import RolloutRow
from gateway.telemetry.state_metrics import StateCollector


def report(name: str, generation: int, seen_at: float = 100.0, expected: str = "", **in_flight: int) -> Report:
    return Report(name, generation, in_flight, frozenset(expected.split()), seen_at)


def test_a_checkpoint_is_kept_by_gateways_that_are_behind_that_want_it_or_that_answer_by_it() -> None:
    reports = [
        report("done", 7),
        report("behind", 6),
        report("expecting", 7, expected="other old"),
        report("answering", 7, old=2, other=1),
        report("idle", 7, old=0),
    ]
    blockers = find_unload_blockers(reports, "old", 7, now=100.0, silent_s=60.0)
    assert (blockers.behind, blockers.expecting, blockers.answering) == (["behind"], ["expecting"], ["answering"])
    assert blockers and not find_unload_blockers(reports[:1], "old", 7, now=100.0, silent_s=60.0)


def test_a_gateway_that_is_silent_for_a_minute_keeps_nothing() -> None:
    dead = [report("dead", 6, seen_at=40.5, expected="old", old=3)]
    assert find_unload_blockers(dead, "old", 7, now=100.0, silent_s=60.0)
    assert not find_unload_blockers(dead, "old", 7, now=100.5, silent_s=60.0)


class Side:
    """One gateway: its own connections, memory and writer; the clock, the database and the engine are shared."""

    def __init__(
        self, root: Path, engine: EngineProcess | None, session: aiohttp.ClientSession, clock: Callable[[], float]
    ) -> None:
        self.database = open_database(f"sqlite:{root / 'gateway.db'}")
        create_tables(self.database, metadata)
        self.writer = Writer(self.database)
        rollout = {"steps": [{"weight": 0.5}], "baking_s": 10.0, "baking_weight": 0.05, "drain_timeout_s": 30.0}
        settings = GatewaySettings(preset="default", state_dir=root, rollout=rollout)  # type: ignore[arg-type]
        self.deployment = Deployment([] if engine is None else [engine.url])
        self.swap = Swap(self.deployment, Caller(session), settings.gateway)  # type: ignore[arg-type]
        self.membership = Membership(self.writer, self.deployment, self.swap, settings, clock)
        self.controller = Controller(self.writer, self.swap, self.deployment, self.membership, settings, clock)
        self.controller.assessor = Assessor(self.writer, settings.preset, clock, cpu_clock=lambda: 0.0)  # at every tick
        self.clock = clock

    @property
    def route(self) -> tuple[int, str | None, str | None, float]:
        """What it routes by."""
        view = self.deployment.view
        return view.generation, view.stable, view.canary, view.weight

    async def look(self) -> None:
        await self.membership.send_heartbeat()
        await self.controller.tick(self.clock())

    def close(self) -> None:
        self.writer.close()
        self.database.dispose()


class Town:
    """Two gateways, an engine, and a clock that tests turn."""

    def __init__(self, root: Path, engine: EngineProcess | None, session: aiohttp.ClientSession) -> None:
        self.root, self._engine, self.session, self.time = root, engine, session, 1000.0
        self.first, self.second = self.open_side(), self.open_side()
        self.sides = [self.first, self.second]

    def open_side(self) -> Side:
        return Side(self.root, self._engine, self.session, lambda: self.time)

    @property
    def engine(self) -> EngineProcess:
        assert self._engine is not None
        return self._engine

    async def look(self, seconds: float = 0.5, *sides: Side) -> None:
        """Time passes, and the gateways (both, unless said otherwise) look."""
        self.time += seconds
        for side in sides or self.sides:
            await side.look()

    async def publish(self, number: int) -> str:
        row, _ = await self.second.controller.registry.register(str(make_checkpoint(self.root / "checkpoints", number)))
        return row.id

    async def row(self) -> RolloutRow:
        return (await self.first.writer.arun(list_rollouts))[0]

    async def status(self, checkpoint: str) -> str:
        row = await self.first.writer.arun(lambda conn: get_checkpoint(conn, checkpoint))
        assert row is not None
        return row.status

    async def start_trial(self) -> tuple[str, str]:
        """Two checkpoints, the second on trial and served by both gateways."""
        old = await self.publish(0)
        await self.look()
        await self.look()
        new = await self.publish(1)
        await self.look()
        await self.look()
        assert (await self.row()).phase == machine.PROGRESSING
        return old, new

    async def promote(self, side: Side) -> None:
        row = await self.row()
        await side.controller.actions.promote_past(row.id, "key:1", "It is fine.")


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    engine = EngineProcess()
    await engine.start()
    async with aiohttp.ClientSession() as session:
        town = Town(tmp_path, engine, session)
        for side in town.sides:
            await side.membership.join(is_alone=False)
        yield town
        for side in town.sides:
            side.close()
    await engine.kill()


async def test_one_leads_and_the_other_takes_over_when_its_lease_has_run_out(town: Town) -> None:
    assert (town.first.membership.fence, town.second.membership.fence) == (1, None)
    await town.look(4.9)
    assert (town.first.membership.fence, town.second.membership.fence) == (1, None)
    await town.look(4.9, town.second)
    assert town.second.membership.fence is None
    await town.look(0.2, town.second)
    assert town.second.membership.fence == 2
    assert town.first.membership.fence is None  # by the clock alone
    await town.look(0.5, town.first)
    assert town.first.membership.fence is None


async def test_a_leader_that_leaves_is_followed_at_once(town: Town) -> None:
    await town.first.membership.leave()
    assert town.first.membership.fence is None
    await town.look(0.5, town.second)
    assert town.second.membership.fence == 2
    assert [report.id for report in town.second.membership.list_live()] == [town.second.membership.id]


async def test_a_gateway_that_is_alone_takes_over_from_the_dead_at_once(town: Town) -> None:
    third = town.open_side()
    town.sides.append(third)
    await third.membership.join(is_alone=True)
    assert third.membership.fence == 2 and len(third.membership.list_live()) == 1


async def test_the_lease_is_given_to_one_of_two_that_ask(town: Town) -> None:
    await town.first.membership.leave()
    fences = [
        await side.writer.arun(lambda conn, name=name: take_lease(conn, "p", name, 5.0, 1.0))  # type: ignore[misc]
        for side, name in ((town.first, "a"), (town.second, "b"), (town.first, "a"))
    ]
    assert fences == [1, None, 1]


async def test_both_route_by_the_same_generation(town: Town) -> None:
    old, new = await town.start_trial()
    assert town.first.route == town.second.route
    assert town.first.route[1:] == (old, new, 0.5)
    await town.promote(town.second)  # the one that does not lead
    await town.look()
    await town.look()
    assert (await town.row()).phase == machine.BAKING
    assert town.first.route == town.second.route
    assert town.first.route[1:] == (new, old, 0.05)
    assert town.engine.loads == [old, new]  # each was loaded by one and proven by both


async def test_nothing_is_unloaded_that_the_other_gateway_still_answers_by(town: Town) -> None:
    old, new = await town.start_trial()
    await town.promote(town.first)
    await town.look()
    state = next(iter(town.second.deployment.engines.values()))
    town.second.deployment.begin(old, state)
    await town.look(10.0)
    for _ in range(10):
        await town.look(0.5)
    assert (await town.row()).phase == machine.HEALTHY
    assert town.second.route[1:3] == (new, None)
    assert await town.status(old) == "draining" and town.engine.unloads == []
    town.second.deployment.end(old, state)
    for _ in range(3):  # it lets go, it says so, the leader reads it
        await town.look()
    assert await town.status(old) == "retired" and town.engine.unloads == [old]
    assert town.engine.adapters == {new}


async def test_nothing_is_unloaded_while_another_gateway_routes_by_an_older_generation(town: Town) -> None:
    old, _ = await town.start_trial()
    await town.promote(town.first)
    await town.look(0.5)
    await town.look(10.0, town.first)
    for _ in range(10):  # past drain_timeout_s; it beats, but it does not get to its tables
        await town.look(5.0, town.first)
        await town.second.membership.send_heartbeat()
    assert await town.status(old) == "draining" and town.engine.unloads == []
    await town.look(0.5, town.second, town.first, town.second, town.first)
    assert await town.status(old) == "retired" and town.engine.unloads == [old]


async def test_a_dead_gateway_holds_up_an_unload_for_a_minute(town: Town) -> None:
    old, _ = await town.start_trial()
    state = next(iter(town.second.deployment.engines.values()))
    town.second.deployment.begin(old, state)
    await town.promote(town.first)
    await town.look()
    dead_since = town.time  # the second gateway is not heard of again
    await town.look(10.0, town.first)
    while town.time < dead_since + 59:
        await town.look(1.0, town.first)
        assert town.engine.unloads == []
    await town.look(1.5, town.first)
    assert town.engine.unloads == [old]


async def test_requests_that_never_end_do_not_hold_up_an_unload_for_ever(town: Town) -> None:
    old, _ = await town.start_trial()
    state = next(iter(town.second.deployment.engines.values()))
    town.second.deployment.begin(old, state)
    await town.promote(town.first)
    await town.look()
    await town.look(10.0)
    started = town.time
    while town.time < started + 29:
        await town.look(1.0)
        assert town.engine.unloads == []
    for _ in range(4):
        await town.look(1.0)
    assert town.engine.unloads == [old] and not town.second.swap.is_expected(old)
    await reconcile_engines(town.second.swap)
    assert old not in town.engine.adapters


async def test_a_restarted_engine_gets_nothing_back_that_is_being_retired(town: Town) -> None:
    old, new = await town.start_trial()
    await town.promote(town.first)
    await town.look()
    await town.look(10.0)
    await town.engine.restart()
    for side in town.sides:
        await reconcile_engines(side.swap)
    assert town.engine.adapters == {new} and old not in town.first.swap.expected | town.second.swap.expected


async def test_the_leader_dies_in_a_rollout_and_the_other_brings_it_to_its_end(town: Town) -> None:
    old, new = await town.start_trial()
    await town.promote(town.second)
    await town.look(6.0, town.second)  # the first is not heard of again
    await town.look(0.5, town.second)
    assert (await town.row()).phase == machine.BAKING
    await town.look(10.5, town.second)
    assert (await town.row()).phase == machine.HEALTHY and town.engine.unloads == []
    await town.look(60.0, town.second)
    assert town.engine.unloads == [old] and town.second.route[1:3] == (new, None)


async def test_a_gateway_that_cannot_read_the_tables_for_a_minute_serves_stable_alone(town: Town) -> None:
    old, new = await town.start_trial()
    follower = town.second.controller._reconciler
    town.time += 59.0
    follower.check_age()
    assert town.second.route[2] == new
    town.time += 1.0
    follower.check_age()
    assert town.second.route[1:] == (old, None, 0.0)
    await town.look()
    await town.look()
    assert town.second.route == town.first.route and town.second.route[2] == new


async def test_prometheus_sees_engines_generation_and_who_leads(town: Town) -> None:
    await town.start_trial()
    state = next(iter(town.first.deployment.engines.values()))
    state.mark_hung(1.0)
    discovery = Discovery(GatewaySettings().gateway, town.first.deployment)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for side in (town.first,)
        for family in StateCollector(side.deployment, side.membership, discovery, RelayState).collect()
        for sample in family.samples
    }
    address = f"127.0.0.1:{town.engine.port}"
    assert found["prefloop_engine_up", address] == 1 and found["prefloop_engine_hung", address] == 1
    assert found["prefloop_engine_breaker", address, "open"] == 1
    assert found["prefloop_engine_breaker", address, "closed"] == 0
    assert found["prefloop_engine_requests_in_flight", address] == 0
    assert found["prefloop_rollout_generation",] == town.first.deployment.view.generation
    assert found["prefloop_controller_leads",] == 1


class WholeTown:
    """Two gateways and no engine but those of whole models, which are registered through either."""

    def __init__(self, root: Path, session: aiohttp.ClientSession) -> None:
        self.town = Town(root, None, session)
        self.runners: dict[str, web.AppRunner] = {}

    async def publish(self, number: int) -> str:
        path = make_full_checkpoint(self.town.root / "checkpoints", number)
        row, _ = await self.town.second.controller.registry.register(str(path))
        return row.id

    async def run_engine(self, side: Side, checkpoint: str) -> FullEngine:
        """Start an engine with the checkpoint's weights, and register it through one of the gateways."""
        engine = FullEngine({checkpoint}, weights=self.town.root / "checkpoints" / checkpoint, started_at=1.0)
        self.runners[checkpoint], port = await start_engine(engine)
        await side.controller.engines.register(f"http://127.0.0.1:{port}", checkpoint, "key:1")
        return engine

    async def list_wanted(self, side: Side) -> list[str]:
        wanted, _ = await side.controller.engines.read(side.membership.list_live())
        return [row.id for row in wanted]


@pytest.fixture
async def whole_town(tmp_path: Path) -> AsyncIterator[WholeTown]:
    async with aiohttp.ClientSession() as session:
        whole = WholeTown(tmp_path, session)
        for side in whole.town.sides:
            await side.membership.join(is_alone=False)
        yield whole
        for side in whole.town.sides:
            side.close()
        for runner in whole.runners.values():
            await runner.cleanup()


async def test_an_engine_that_one_gateway_was_told_of_serves_both_until_neither_needs_it(whole_town: WholeTown) -> None:
    town = whole_town.town
    old = await whole_town.publish(0)
    await town.look()
    assert await whole_town.list_wanted(town.first) == await whole_town.list_wanted(town.second) == [old]
    await whole_town.run_engine(town.second, old)
    await town.look()
    await town.look()
    assert town.first.route[1] == town.second.route[1] == old
    new = await whole_town.publish(1)
    await town.look()
    assert (await town.row()).phase == machine.PENDING
    await whole_town.run_engine(town.first, new)
    await town.look()
    await town.look()
    assert town.first.route[1:] == town.second.route[1:] == (old, new, 0.5)
    for side in town.sides:
        assert {side.deployment.pick_engine(name).checkpoint for name in (old, new)} == {old, new}
    await town.promote(town.second)
    await town.look()
    await town.look()
    state = town.second.deployment.pick_engine(old)
    town.second.deployment.begin(old, state)
    for _ in range(8):
        await town.look(10.0)
    assert town.second.route[1:3] == (new, None)
    for side in town.sides:  # also past the time in which an adapter would be unloaded
        assert await whole_town.list_wanted(side) == [old, new]
    assert await town.status(old) == "retired"
    town.second.deployment.end(old, state)
    for _ in range(3):
        await town.look()
    assert await whole_town.list_wanted(town.first) == await whole_town.list_wanted(town.second) == [new]
    await town.first.controller.engines.withdraw(state.url)
    await town.look()
    assert all(state.url not in side.deployment.engines for side in town.sides)


async def test_an_engine_that_does_not_hold_what_it_is_registered_for_serves_nothing(whole_town: WholeTown) -> None:
    town = whole_town.town
    old = await whole_town.publish(0)
    engine = await whole_town.run_engine(town.first, old)
    engine.adapters = {"another-model"}
    await town.look()
    await town.look()
    assert town.first.route[1] is None and not town.first.deployment.states[0].proven
    engine.adapters = {old}
    await town.look()
    await town.look()
    assert town.first.route[1] == old


async def test_a_restarted_engine_of_a_whole_model_is_proven_again_before_it_is_used(whole_town: WholeTown) -> None:
    town = whole_town.town
    old = await whole_town.publish(0)
    engine = await whole_town.run_engine(town.first, old)
    await town.look()
    await town.look()
    state = town.first.deployment.states[0]
    assert state.proven == {old}
    engine.started_at, engine.weights = 2.0, make_full_checkpoint(town.root / "others", 3)
    await reconcile_engines(town.first.swap)
    assert state.proven == frozenset()
    engine.weights = town.root / "checkpoints" / old
    await reconcile_engines(town.first.swap)
    assert state.proven == {old}
