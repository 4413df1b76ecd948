"""The S3 server that developers, tests and measurements start for themselves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feedback.checkpoint_store import open_store
from feedback.errors import StoreUnavailable
from prefloop.servers import s3
from prefloop.servers.ports import find_port
from tests.s3 import BUCKET, run_server


def test_what_was_written_is_there_after_a_kill_on_the_same_port() -> None:
    with run_server() as server:
        files = open_store(f"s3://{BUCKET}/kept").files
        files.write("a.json", b"{}")
        server.kill()
        with pytest.raises(StoreUnavailable):
            files.read("a.json", 10)
        server.start()
        assert files.read("a.json", 10) == b"{}"
        assert files.read("b.json", 10) is None


def test_wrong_keys_and_a_bucket_that_is_not_there_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_server():
        with pytest.raises(StoreUnavailable, match=r"NoSuchBucket|bucket does not exist"):
            open_store("s3://no-such-bucket/x").files.write("a.json", b"{}")
        with pytest.raises(StoreUnavailable, match="bucket does not exist"):
            open_store("s3://no-such-bucket/x").list_ids()
        assert open_store(f"s3://{BUCKET}/nothing-yet").list_ids() == []
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(StoreUnavailable, match="PermissionError"):
            open_store(f"s3://{BUCKET}/x").files.read("a.json", 10)


def test_a_hung_server_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_server() as server:
        files = open_store(f"s3://{BUCKET}/hung").files
        files._fs.config_kwargs["read_timeout"] = 1
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(StoreUnavailable):
            files.read("a.json", 10)


def test_the_command_prints_settings_that_work_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    if missing := s3.check_programs():
        pytest.skip(missing)
    process = subprocess.Popen(
        [sys.executable, "-m", "prefloop.servers.s3", "--folder", str(tmp_path / "s3"), "--port", str(find_port())],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = dict(process.stdout.readline().strip().split("=", 1) for _ in range(6))
    assert said["PREFLOOP_CHECKPOINTS_URL"] == "s3://prefloop/checkpoints"
    code = "import os; from feedback.settings import SharedSettings; print(SharedSettings().open_store().list_ids())"
    seen = subprocess.run([sys.executable, "-c", code], env={**os.environ, **said}, capture_output=True, text=True)
    assert seen.stdout.strip() == "[]", seen.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_without_go_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFLOOP_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install Go 1.25 or newer" in str(s3.check_programs())
    with pytest.raises(s3.S3Failed, match="go is missing"):
        s3.install_s3()
