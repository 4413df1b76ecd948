"""A fault point kills the process that comes to it, and only where the environment asks for it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feedback.faults import POINTS, parse_chances

PROGRAM = "from feedback.faults import reach\nfor _ in range(1000): reach('relay.appended')\nprint('alive')"


def run_program(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, **env}, capture_output=True, text=True)


def test_nothing_happens_unless_a_point_is_named() -> None:
    assert run_program().stdout == "alive\n"
    assert run_program(PREFLOOP_FAULTS="consumer.read=1").stdout == "alive\n"


def test_a_named_point_kills_and_leaves_its_line(tmp_path: Path) -> None:
    file = tmp_path / "faults"
    done = run_program(PREFLOOP_FAULTS="relay.appended=0.1", PREFLOOP_FAULTS_SEED="7", PREFLOOP_FAULTS_FILE=str(file))
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    point, pid, _ = file.read_text().split()
    assert point == "relay.appended" and int(pid) > 0


def test_a_point_that_does_not_exist_is_refused() -> None:
    assert parse_chances("") == {}
    assert parse_chances("relay.appended=0.5,consumer.read") == {"relay.appended": 0.5, "consumer.read": 1.0}
    with pytest.raises(ValueError, match=r"relay\.apended"):
        parse_chances("relay.apended=1")


def test_every_point_is_reached_somewhere_in_the_code() -> None:
    root = Path(__file__).parents[2]
    code = "".join(
        path.read_text() for name in ("feedback", "gateway", "trainer") for path in (root / name).rglob("*.py")
    )
    assert [point for point in POINTS if f'reach("{point}")' not in code] == []
