"""The commands on the checkpoint store itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from feedback.checkpoint_store import open_store
from feedback.checkpoint_store.store import BLOBS, name_blob
from feedback.manifest import read_manifest
from prefloop.cli import app
from tests.feedback.checkpoint_store.samples import make_directory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFLOOP_CHECKPOINTS_URL", f"file://{tmp_path / 'store'}")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["checkpoints", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == code, result.output
    return result


def test_a_key_is_made_signs_and_is_trusted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, directory = open_store(f"file://{place / 'store'}"), make_directory(place)
    store.put(directory)
    (place / "trusted.pem").write_text(run("sign-key", "--out", str(place / "key.pem")).stdout)
    assert "File exists" in run("sign-key", "--out", str(place / "key.pem"), code=1).stderr
    assert "signing_key_file" in run("sign", directory.name, code=1).stderr
    monkeypatch.setenv("PREFLOOP_SIGNING_KEY_FILE", str(place / "key.pem"))
    monkeypatch.setenv("PREFLOOP_TRUSTED_KEYS_FILE", str(place / "trusted.pem"))
    assert "not signed" in run("verify", code=1).stdout
    assert "is signed by the key" in run("sign", directory.name).stdout
    assert "good" in run("verify", directory.name).stdout


def test_what_would_be_refused_is_named(place: Path) -> None:
    store = open_store(f"file://{place / 'store'}")
    good, bad = make_directory(place, 1), make_directory(place, 2, b"other")
    for directory in (good, bad):
        store.put(directory)
    store.files.write(name_blob(read_manifest(bad).files["adapter_model.safetensors"]), b"altered")
    found = json.loads(run("verify", "--json", code=1).stdout)["data"]
    assert [(row["checkpoint"], row["fault"] is None) for row in found] == [(good.name, True), (bad.name, False)]
    assert "holds no checkpoint" in run("verify", "c-000009-0123456789ab", code=1).stdout


def test_what_nothing_names_is_collected(place: Path) -> None:
    store, directory = open_store(f"file://{place / 'store'}"), make_directory(place)
    store.put(directory)
    store.delete(directory.name)
    assert json.loads(run("collect", "--json").stdout) == {"files": 0, "bytes": 0, "uploads": 0}
    assert "2 files (9 bytes) would go" in run("collect", "--grace-hours", "0", "--dry-run").stdout
    assert "2 files (9 bytes) are gone" in run("collect", "--grace-hours", "0").stdout
    assert store.files.list_files(BLOBS) == []


def test_without_a_store_the_commands_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFLOOP_CHECKPOINTS_URL", raising=False)
    for arguments in (("verify",), ("collect",), ("sign", "c-000009-0123456789ab")):
        assert "No checkpoints_url is set" in run(*arguments, code=1).stderr
