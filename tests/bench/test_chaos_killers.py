"""Kills are counted as what they were: from outside, at a boundary that left its line, or an end of the process's own."""

import sys
import time
from pathlib import Path

import pytest

from bench.chaos.killers import Killer, Tally
from bench.chaos.schedule import Life
from bench.chaos.victims import Service

REACHES = "import time\nfrom feedback.faults import reach\nwhile True: reach('consumer.read'); time.sleep(0.01)"
ENDS = "raise SystemExit(1)"


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(tmp_path / "faults")


def make_service(tmp_path: Path, program: str) -> Service:
    async def is_up() -> bool:
        return True

    env = {"PREFLOOP_FAULTS_FILE": str(tmp_path / "faults"), "PREFLOOP_FAULTS_SEED": "7"}
    return Service("it", [sys.executable, "-c", program], env, tmp_path / "log", is_up)


async def live(service: Service, tally: Tally, *lives: Life, count_rounds=lambda: 0) -> None:
    await service.start()
    try:
        await Killer(service, lives, tally, count_rounds).run()
        assert service.is_running()
    finally:
        await service.stop()


async def test_a_life_ends_from_outside_when_its_time_is_up(tmp_path: Path, tally: Tally):
    await live(make_service(tmp_path, REACHES), tally, Life("running", 0.05), Life("starting", 0.05))
    assert (tally.kills["it"], tally.exits.total(), tally.count_faults()) == (2, 0, {})
    assert len(tally.recovery_s["it"]) == 2


async def test_a_life_that_ends_at_its_boundary_is_a_kill_with_a_line(tmp_path: Path, tally: Tally):
    lives = [Life("running", 0.05), Life("running", 30.0, "consumer.read"), Life("running", 30.0, "consumer.read")]
    began = time.monotonic()
    await live(make_service(tmp_path, REACHES), tally, *lives)
    assert time.monotonic() - began < 30
    assert (tally.kills["it"], tally.count_faults()) == (3, {"consumer.read": 2})


async def test_a_process_that_ends_by_itself_is_started_again_and_is_no_kill(tmp_path: Path, tally: Tally):
    counter = tmp_path / "starts"
    program = (
        f"import pathlib, time; p = pathlib.Path({str(counter)!r}); n = len(p.read_text()) if p.exists() else 0\n"
        f"p.write_text('x' * (n + 1))\nif n == 1: {ENDS}\ntime.sleep(60)"
    )
    await live(make_service(tmp_path, program), tally, Life("running", 0.5), Life("running", 1.0))
    assert (tally.kills["it"], tally.exits["it"]) == (2, 1)


async def test_a_life_may_end_with_a_round(tmp_path: Path, tally: Tally):
    began = time.monotonic()
    rounds = iter(range(1000))
    await live(make_service(tmp_path, REACHES), tally, Life("round", 30.0), count_rounds=lambda: next(rounds))
    assert (tally.kills["it"], time.monotonic() - began < 20) == (1, True)
