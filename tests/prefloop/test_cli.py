"""The command line is light, helpful, and says what is wrong."""

import subprocess
import sys

from typer.testing import CliRunner

from prefloop.cli import app

runner = CliRunner()


def test_help_lists_the_commands():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("up", "demo", "doctor", "status", "keys", "rollout", "migrate"):
        assert command in result.output


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
