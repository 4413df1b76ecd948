"""The supervisor restarts what dies, says why, and leaves nothing behind."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from prefloop.supervisor import Service, Supervisor, describe_exit, last_error_line

SLEEPER = "import time\nwhile True: time.sleep(1)"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SLEEPER!r}])"


def service(tmp_path: Path, code: str) -> Service:
    return Service("sleeper", [sys.executable, "-c", code], tmp_path / "logs" / "sleeper.log")


async def wait_for(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        await asyncio.sleep(0.02)


async def test_killed_service_is_restarted_and_the_reason_is_shown(tmp_path):
    supervisor = Supervisor()
    supervisor.start(service(tmp_path, SLEEPER))
    state = supervisor.states["sleeper"]
    await wait_for(lambda: state.pid is not None)
    first_pid = state.pid
    os.kill(first_pid, signal.SIGKILL)
    await wait_for(lambda: state.pid not in (None, first_pid))
    assert state.restarts == 1
    assert state.reason == "killed by SIGKILL"
    assert "sleeper killed by SIGKILL; restarting" in supervisor.events[-1][1]
    await supervisor.stop()
    assert state.pid is None


async def test_failing_service_shows_its_last_error(tmp_path):
    supervisor = Supervisor()
    supervisor.start(service(tmp_path, "raise ValueError('no such model')"))
    state = supervisor.states["sleeper"]
    await wait_for(lambda: state.restarts >= 1)
    await supervisor.stop()
    assert state.reason == "exited with code 1: ValueError: no such model"


async def test_children_of_a_killed_service_do_not_survive_it(tmp_path):
    supervisor = Supervisor()
    supervisor.start(service(tmp_path, PARENT))
    state = supervisor.states["sleeper"]
    await wait_for(lambda: state.pid is not None and psutil.Process(state.pid).children())
    child = psutil.Process(state.pid).children()[0]
    os.kill(state.pid, signal.SIGKILL)
    await wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    await supervisor.stop()


def test_exit_is_described_in_words():
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(3) == "exited with code 3"
    assert describe_exit(0) == "stopped"


def test_last_error_line_prefers_an_error(tmp_path):
    log = tmp_path / "log"
    log.write_text("starting\nRuntimeError: port taken\nbye\n")
    assert last_error_line(log) == "RuntimeError: port taken"
    assert last_error_line(tmp_path / "absent") == ""


async def test_one_service_can_be_ended_for_good_while_the_others_run(tmp_path):
    supervisor = Supervisor()
    supervisor.start(service(tmp_path, SLEEPER))
    other = Service("other", [sys.executable, "-c", SLEEPER], tmp_path / "logs" / "other.log")
    supervisor.start(other)
    await wait_for(lambda: all(state.pid for state in supervisor.states.values()))
    pid = supervisor.states["sleeper"].pid
    await supervisor.end("sleeper")
    assert not psutil.pid_exists(pid)
    assert list(supervisor.states) == ["other"] and supervisor.states["other"].is_running
    supervisor.start(service(tmp_path, SLEEPER))
    await wait_for(lambda: supervisor.states["sleeper"].pid is not None)
    await supervisor.stop()


async def test_what_attends_to_services_ends_before_them(tmp_path):
    supervisor, seen = Supervisor(), []

    async def attend() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            seen.append(supervisor.states["sleeper"].is_running)

    supervisor.start(service(tmp_path, SLEEPER))
    supervisor.run_beside(attend())
    await wait_for(lambda: supervisor.states["sleeper"].pid is not None)
    await supervisor.stop()
    assert seen == [True]
