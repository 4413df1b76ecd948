"""The command line is light, helpful, and says what is wrong."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from prefloop.cli import app

ROOT = Path(__file__).parents[2]
runner = CliRunner(env={"COLUMNS": "250"})


def test_help_lists_the_commands():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in (
        "up",
        "demo",
        "doctor",
        "feedback",
        "status",
        "keys",
        "rollout",
        "checkpoints",
        "engines",
        "bias",
        "migrate",
        "sync",
    ):
        assert f"│ {command} " in result.output


WITHOUT_JSON = {
    "up",
    "demo",
    "sync",
    "engine-host",
    "feedback export",
    "feedback import",
}  # what they give is a process, or a file


def list_leaves(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by what is typed."""
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        if hasattr(command, "list_commands"):
            yield from list_leaves(command, f"{name}{word} ")
        else:
            yield f"{name}{word}", command


def test_every_command_can_print_json():
    leaves = dict(list_leaves(typer.main.get_command(app)))
    assert len(leaves) > 35
    without = {name for name, command in leaves.items() if all("--json" not in each.opts for each in command.params)}
    assert without == WITHOUT_JSON


def test_what_only_looks_prints_one_json_document(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)["data"]
    assert {"name", "is_ok", "seen", "remedy"} == set(found[0])
    assert json.loads(runner.invoke(app, ["migrate", "--check", "--json"]).stdout) == {"missing": {}}


def test_command_line_imports_nothing_heavy():
    heavy = ("torch", "transformers", "vllm", "sqlalchemy", "gateway", "trainer")
    code = f"import sys, prefloop.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_missing_gateway_is_said_so(tmp_path):
    result = runner.invoke(app, ["status", "--gateway", "http://127.0.0.1:9", "--key", "pl_a_b"])
    assert result.exit_code == 1
    assert "No gateway answers" in result.output


def test_a_missing_key_is_said_so(tmp_path):
    result = runner.invoke(app, ["keys", "list", "--state-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "No key" in result.output


def test_rollout_start_wants_one_of_aa_and_checkpoint():
    result = runner.invoke(app, ["rollout", "start", "--key", "pl_a_b"])
    assert result.exit_code == 1
    assert "either --aa or --checkpoint" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["up", "--port", "0"], 2, "greater than or equal to 1"),
        (["up", "--port", "65535"], 2, "less than or equal to 65531"),
        (["up", "--engine", "localhost:8000"], 2, "no address"),
        (["up", "--model", "./no/such/model"], 1, "There is no model in"),
        (["up", "--state-dir", "file"], 1, "file"),
        (["up", "--max-model-len", "-1"], 2, "greater than or equal to 0"),
        (["demo", "--until-choices", "-1"], 2, "greater than or equal to 0"),
        (["demo", "--world", "none.toml"], 2, "does not exist"),
        (["demo", "--report", "no/such/folder/r.json"], 2, "not there"),
        (["demo", "--log", "files"], 2, "files"),
        (["doctor", "--engine", "localhost:8000"], 2, "no address"),
        (["doctor", "--engine", "http://127.0.0.1:9"], 1, "does not answer"),
        (["doctor", "--engine", "http://[::1"], 1, "does not answer"),
        (["migrate", "--state-dir", "x"], 2, "No such option"),
        (["feedback", "stats", "--state-dir", "file"], 0, "no database yet"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_wrong_arguments_start_nothing(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = runner.invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == code and words in result.output, result.output
    assert os.listdir(tmp_path) == ["file"]


def test_a_port_that_is_taken_is_said_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for command in ("up", "demo"):
            result = runner.invoke(app, [command, "--state-dir", str(tmp_path), "--port", str(min(port, 65531))])
            assert result.exit_code == 1 and "is taken" in result.output
    assert os.listdir(tmp_path) == []


COMMANDS = {
    "gateway": ["-m", "gateway.app"],
    "trainer": ["-m", "trainer.main"],
    "up": ["-m", "prefloop.cli", "up"],
    "demo": ["-m", "prefloop.cli", "demo"],
    "migrate": ["-m", "prefloop.cli", "migrate"],
    "stats": ["-m", "prefloop.cli", "feedback", "stats"],
    "status": ["-m", "prefloop.cli", "status"],
}
UNKNOWN = ("[trainer]\nsede = 3\n", "prefloop.toml: unknown setting trainer.sede: did you mean trainer.seed?")
BROKEN = ("port = = 1\n", "prefloop.toml: Invalid value (at line 1, column 8)")
IMPOSSIBLE = ("[rollout]\nmax_users = 99\n", "prefloop.toml: rollout: min_users (100) is above max_users (99)")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [*((name, *UNKNOWN) for name in COMMANDS), ("up", *BROKEN), ("gateway", *BROKEN), ("stats", *BROKEN)]
    + [(name, *IMPOSSIBLE) for name in ("gateway", "up")],
)
def test_all_processes_refuse_the_same_file_in_the_same_line(name: str, text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "prefloop.toml").write_text(text)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("PREFLOOP_CONFIG", None)
    command = [sys.executable, *COMMANDS[name]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (1, line)
    assert os.listdir(tmp_path) == ["prefloop.toml"]
