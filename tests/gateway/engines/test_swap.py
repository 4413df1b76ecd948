"""Loading, proving, unloading, and bringing back engines that died, restarted or hung."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from engine import BASE_LOGPROBS
from engine_process import Caller, EngineProcess, reconcile_engines

from bench.gateway.checkpoints import make_checkpoint
from feedback.manifest import read_manifest
from gateway.engines.deployment import Deployment
from gateway.engines.engine import BreakerLimits, EngineState
from gateway.engines.swap import Swap, read_metric
from gateway.errors import SwapError
from gateway.sections.serving import GatewaySection
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import CheckpointRow


def row(folder: Path, number: int) -> CheckpointRow:
    path = make_checkpoint(folder, number)
    manifest = read_manifest(path)
    text = (path / "manifest.json").read_text()
    return CheckpointRow(path.name, number, None, "lora", manifest.digest, str(path), text, "waiting", 0.0, 0.0)


class Station:
    """A swap over engines of the test's own; `reconcile` stands for one look of its loops."""

    def __init__(
        self, session: aiohttp.ClientSession, processes: list[EngineProcess], engine_checkpoints_dir: str = ""
    ) -> None:
        urls = [process.url for process in processes]
        self.processes = processes
        self.deployment = Deployment(urls, BreakerLimits(2, 0.01, 0.05))
        self.caller = Caller(session)
        section = GatewaySection(hang_s=0.2, reconcile_s=0.05, engine_checkpoints_dir=engine_checkpoints_dir)
        self.swap = Swap(self.deployment, self.caller, section)  # type: ignore[arg-type]

    @property
    def states(self) -> list[EngineState]:
        return list(self.deployment.engines.values())

    def hang(self, process: EngineProcess) -> None:
        """The process answers no probe; what waits for one gives up soon."""
        process.is_hung, self.caller.timeout_s = True, 0.3

    def proven(self) -> list[frozenset[str]]:
        return [state.proven for state in self.states]


@pytest.fixture
async def fetching() -> AsyncIterator[Station]:
    """Two engines, each with a sidecar that fetches what they are told to load."""
    processes = [EngineProcess(), EngineProcess()]
    for process in processes:
        await process.start()
    async with aiohttp.ClientSession() as session:
        yield Station(session, processes, "/engine/checkpoints/")
    for process in processes:
        await process.kill()


@pytest.fixture
async def station() -> AsyncIterator[Station]:
    processes = [EngineProcess(), EngineProcess()]
    for process in processes:
        await process.start()
    async with aiohttp.ClientSession() as session:
        yield Station(session, processes)
    for process in processes:
        await process.kill()


async def test_a_checkpoint_is_loaded_and_proven_on_every_engine(station: Station, tmp_path: Path) -> None:
    checkpoint = row(tmp_path, 1)
    assert await station.swap.load(checkpoint) > 0
    assert station.proven() == [{checkpoint.id}] * 2
    assert station.swap.is_expected(checkpoint.id) and station.swap.digest(checkpoint.id) == checkpoint.digest


async def test_an_adapter_that_answers_as_the_base_is_refused(station: Station, tmp_path: Path) -> None:
    station.processes[1].probe_logprobs = list(BASE_LOGPROBS)
    with pytest.raises(SwapError, match="as the base does") as refused:
        await station.swap.load(row(tmp_path, 1))
    assert not refused.value.is_transient and not station.swap.expected


async def test_one_engine_that_is_away_does_not_hold_up_a_load_and_gets_it_when_it_is_back(
    station: Station, tmp_path: Path
) -> None:
    checkpoint, away = row(tmp_path, 1), station.processes[0]
    await away.kill()
    await reconcile_engines(station.swap)
    await station.swap.load(checkpoint)
    assert station.proven() == [frozenset(), {checkpoint.id}]
    await away.start()
    await reconcile_engines(station.swap)
    assert station.proven() == [{checkpoint.id}] * 2


async def test_no_engine_at_all_is_a_transient_reason(station: Station, tmp_path: Path) -> None:
    for process in station.processes:
        await process.kill()
    with pytest.raises(SwapError) as refused:
        await station.swap.load(row(tmp_path, 1))
    assert refused.value.is_transient


async def test_a_5xx_of_an_engine_that_is_dying_is_no_refusal(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad adapter gets 500 too: it is refused once an engine that lives on has said so for ten seconds."""
    checkpoint = row(tmp_path, 1)
    now = 1000.0
    monkeypatch.setattr("gateway.engines.swap.time.monotonic", lambda: now)
    for process in station.processes:
        process.fails_to_load = True

    async def is_transient() -> bool:
        with pytest.raises(SwapError) as refused:
            await station.swap.load(checkpoint)
        return refused.value.is_transient

    assert await is_transient()
    now += 9.0
    for process in station.processes:
        await process.restart()
    assert await is_transient()  # it is another process by now
    now += 9.9
    assert await is_transient()
    now += 0.2
    assert not await is_transient()
    for process in station.processes:
        process.fails_to_load = False
    await station.swap.load(checkpoint)
    assert station.proven() == [{checkpoint.id}] * 2


async def test_an_unloaded_checkpoint_leaves_every_engine_and_is_not_loaded_again(
    station: Station, tmp_path: Path
) -> None:
    checkpoint = row(tmp_path, 1)
    await station.swap.load(checkpoint)
    await station.swap.unload(checkpoint)
    await reconcile_engines(station.swap)
    assert [process.adapters for process in station.processes] == [set(), set()]
    assert [process.loads for process in station.processes] == [[checkpoint.id]] * 2
    assert station.swap.digest(checkpoint.id) == checkpoint.digest  # its comparisons may still be written


async def test_a_restarted_engine_is_unused_until_its_adapters_are_loaded_and_proven_again(
    station: Station, tmp_path: Path
) -> None:
    checkpoint, process, state = row(tmp_path, 1), station.processes[0], station.states[0]
    await station.swap.load(checkpoint)
    await process.restart()
    process.probe_logprobs = list(BASE_LOGPROBS)
    await reconcile_engines(station.swap)
    assert not state.proven and station.deployment.pick_engine(checkpoint.id) is station.states[1]
    process.probe_logprobs = EngineProcess().probe_logprobs
    await reconcile_engines(station.swap)
    assert state.proven == {checkpoint.id} and process.loads == [checkpoint.id] * 2


async def test_a_restart_between_two_looks_is_seen_although_another_gateway_loaded_the_adapter_again(
    station: Station, tmp_path: Path
) -> None:
    checkpoint, process = row(tmp_path, 1), station.processes[0]
    await station.swap.load(checkpoint)
    await process.restart()
    process.adapters.add(checkpoint.id)
    num_probes = len(process.probes)
    await reconcile_engines(station.swap)
    assert process.probes[num_probes:] == [checkpoint.id] and process.loads == [checkpoint.id]
    await reconcile_engines(station.swap)
    assert len(process.probes) == num_probes + 1


async def test_an_engine_that_hangs_is_taken_out_and_comes_back_by_a_trial(station: Station, tmp_path: Path) -> None:
    checkpoint, process, state = row(tmp_path, 1), station.processes[0], station.states[0]
    await station.swap.load(checkpoint)
    station.hang(process)
    state.begin()
    state.last_progress_at = time.monotonic() - 0.3
    await reconcile_engines(station.swap)
    assert state.up and state.is_hung and not state.is_usable  # its health is fine
    assert station.deployment.pick_engine(checkpoint.id) is station.states[1]
    await asyncio.sleep(0.02)
    await reconcile_engines(station.swap)  # the trial's probe gets no answer
    assert state.is_hung and state.breaker.phase == "open"
    process.is_hung = False
    await asyncio.sleep(0.03)
    await reconcile_engines(station.swap)
    assert state.is_usable and not state.is_hung and state.proven == {checkpoint.id}


async def test_an_engine_that_answers_no_look_either_is_taken_out_once_and_comes_back_by_a_trial(
    station: Station, tmp_path: Path
) -> None:
    checkpoint, process, state = row(tmp_path, 1), station.processes[0], station.states[0]
    await station.swap.load(checkpoint)
    calls: list[str] = []
    state.on_hang = lambda: calls.append("hang")
    process.is_frozen = True
    await reconcile_engines(station.swap)
    assert not state.up and not state.is_hung  # away, with nothing in flight
    state.begin()
    state.last_progress_at -= 0.3
    for _ in range(2):
        await reconcile_engines(station.swap)
        assert state.is_hung and not state.up and calls == ["hang"]
    process.is_frozen = False
    await reconcile_engines(station.swap)
    assert state.is_usable and not state.is_hung and state.proven == {checkpoint.id}


async def test_an_engine_that_counts_tokens_does_not_hang_however_long_its_answer_takes(station: Station) -> None:
    process, state = station.processes[0], station.states[0]
    await reconcile_engines(station.swap)
    state.begin()
    for _ in range(3):
        state.last_progress_at -= 0.3
        process.num_tokens += 1
        await reconcile_engines(station.swap)
        assert state.is_usable
    state.last_progress_at -= 0.3
    await reconcile_engines(station.swap)
    assert state.is_hung


async def test_failures_in_a_row_open_the_breaker_and_a_passed_probe_closes_it(
    station: Station, tmp_path: Path
) -> None:
    checkpoint, state = row(tmp_path, 1), station.states[0]
    await station.swap.load(checkpoint)
    for _ in range(2):
        state.note_failure(time.monotonic())
    assert not state.is_usable
    await asyncio.sleep(0.02)
    num_probes = len(station.processes[0].probes)
    await reconcile_engines(station.swap)
    assert state.is_usable and len(station.processes[0].probes) == num_probes + 1


async def test_the_loops_bring_an_engine_back_by_themselves(station: Station, tmp_path: Path) -> None:
    checkpoint, state = row(tmp_path, 1), station.states[0]
    await station.swap.load(checkpoint)
    loops = asyncio.create_task(station.swap.run())
    try:
        await station.processes[0].kill()
        station.swap.wake()
        async with asyncio.timeout(5):
            while state.up:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await station.processes[0].restart()
            while not (state.is_usable and state.proven):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        loops.cancel()
    assert station.processes[0].loads == [checkpoint.id] * 2


async def test_an_adapter_that_was_unloaded_while_it_was_being_loaded_again_does_not_stay(
    station: Station, tmp_path: Path
) -> None:
    checkpoint, process = row(tmp_path, 1), station.processes[0]
    await station.swap.load(checkpoint)
    await process.restart()
    station.hang(process)
    reconciling = asyncio.create_task(reconcile_engines(station.swap))
    async with asyncio.timeout(5):
        while len(process.probes) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    station.swap.release(checkpoint.id)
    await reconciling
    assert process.adapters == set()


def test_metrics_are_summed_over_their_series_and_names_that_only_begin_alike_are_left_out() -> None:
    text = b'# x\na_total{m="1"} 2\na_total{m="2"} 3.5\na_total_created 9\nb_sum 1e3\nprocess 7\n'
    assert read_metric(text, (b"a_total",)) == 5.5
    assert read_metric(text, (b"a_total", b"b_sum")) == 1005.5
    assert read_metric(text, (b"c",)) is None
    assert read_metric(b"", (b"a_total",)) is None


def test_the_demo_preset_gives_defaults_and_written_values_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_PRESET", "demo")
    monkeypatch.setenv("PREFLOOP_ROLLOUT__CAP", "7")
    settings = GatewaySettings()
    assert (settings.rollout.cap, settings.rollout.min_users, settings.rollout.window_s) == (7, 40, 30.0)
    assert [(step.weight, step.hold_s) for step in settings.rollout.steps] == [(0.25, 10.0), (0.5, None)]
    assert settings.gateway.ask_rate == 1.0
    monkeypatch.delenv("PREFLOOP_PRESET")
    assert GatewaySettings().rollout.min_users == 100


async def test_an_engine_whose_sidecar_has_not_fetched_a_checkpoint_yet_is_tried_again(
    fetching: Station, tmp_path: Path
) -> None:
    checkpoint, late = row(tmp_path, 1), fetching.processes[0]
    for process in fetching.processes:
        process.lacks.add(checkpoint.id)
    with pytest.raises(SwapError, match="has not fetched") as refused:
        await fetching.swap.load(checkpoint)
    assert refused.value.is_transient
    fetching.processes[1].lacks.clear()
    await fetching.swap.load(checkpoint)
    assert fetching.proven() == [frozenset(), {checkpoint.id}]
    await reconcile_engines(fetching.swap)
    assert fetching.proven() == [frozenset(), {checkpoint.id}] and fetching.states[0].breaker.phase == "closed"
    late.lacks.clear()
    await reconcile_engines(fetching.swap)
    assert fetching.proven() == [{checkpoint.id}] * 2
    assert set(late.paths) == {f"/engine/checkpoints/{checkpoint.id}"}


async def test_a_checkpoint_that_is_not_fetched_holds_up_no_other(fetching: Station, tmp_path: Path) -> None:
    late, stable = row(tmp_path, 1), row(tmp_path, 2)
    first = fetching.processes[0]
    for checkpoint in (late, stable):
        await fetching.swap.load(checkpoint)
    first.lacks.add(late.id)
    await first.restart()
    await reconcile_engines(fetching.swap)
    assert fetching.proven()[0] == {stable.id}


async def test_without_sidecars_a_path_that_is_not_there_is_refused_for_good(station: Station, tmp_path: Path) -> None:
    checkpoint = row(tmp_path, 1)
    for process in station.processes:
        process.lacks.add(checkpoint.id)
    with pytest.raises(SwapError, match="404") as refused:
        await station.swap.load(checkpoint)
    assert not refused.value.is_transient
