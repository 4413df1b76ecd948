"""`prefloop engine-host` as a process: its pages, what it runs, and how it fetches whole models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from feedback.checkpoint_store import open_store
from feedback.errors import ManifestError
from feedback.manifest import Manifest, Probe, checkpoint_id, combine_hashes, hash_files, write_manifest
from prefloop.hosting.fetching import Fetcher
from prefloop.hosting.gateway import WholeModel
from prefloop.hosting.process import build_service, find_address
from prefloop.hosting.settings import EngineHostSettings
from prefloop.servers.ports import find_port


def make_model(folder: Path, number: int) -> Path:
    draft = folder / f"draft-{number}"
    draft.mkdir(parents=True)
    (draft / "config.json").write_text("{}")
    (draft / "model.safetensors").write_text(f"weights {number}")
    files = hash_files(draft)
    digest = combine_hashes(files)
    final = draft.rename(folder / checkpoint_id(number, digest))
    probe = Probe(prompt_token_ids=[1, 2], logprobs=[-1.0], base_logprobs=[-2.0])
    write_manifest(
        final,
        Manifest(
            id=final.name, number=number, parent=None, base_digest="0" * 64, rank=0, digest=digest, files=files,
            created_at=1.0, probe=probe, kind="full",
        ),
    )  # fmt: skip
    return final


async def test_a_host_keeps_the_one_model_that_it_fetched_and_refuses_another_digest(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path / 'store'}")
    first, second = (make_model(tmp_path / "trainer", number) for number in (0, 1))
    for path in (first, second):
        store.put(path)
    fetcher = Fetcher(store, tmp_path / "models", None)
    assert await fetcher.fetch(WholeModel(first.name, "elsewhere")) == tmp_path / "models" / first.name
    fetched = await fetcher.fetch(WholeModel(second.name, "elsewhere"))
    assert (fetched / "model.safetensors").read_text() == "weights 1"
    assert [path.name for path in (tmp_path / "models").iterdir()] == [second.name]
    with pytest.raises(ManifestError, match="has the digest"):
        await fetcher.fetch(WholeModel(first.name, "elsewhere", digest="0" * 64))
    assert await Fetcher(None, tmp_path / "models", None).fetch(WholeModel(first.name, str(first))) == first


def test_the_engine_listens_where_the_settings_say(tmp_path: Path) -> None:
    section = {"engine_host": "0.0.0.0", "engine_port": 8000, "engine_args": ["--seed", "1"], "max_model_len": 512}
    settings = EngineHostSettings(state_dir=tmp_path, engine_host=section)
    service = build_service(settings)(WholeModel("c-000001-0123456789ab", "gateway's"), tmp_path / "model")
    line = " ".join(service.argv)
    assert f"--model {tmp_path / 'model'} --served-model-name c-000001-0123456789ab" in line
    assert "--host 0.0.0.0 --port 8000" in line and line.endswith("--max-model-len 512 --seed 1")
    assert find_address("http://127.0.0.1:8800") == "127.0.0.1"


def test_a_host_that_no_gateway_answers_is_alive_and_not_ready_and_ends_at_a_signal(tmp_path: Path) -> None:
    port = find_port()
    env = {
        **os.environ,
        "PREFLOOP_STATE_DIR": str(tmp_path),
        "PREFLOOP_ENGINE_HOST__PORT": str(port),
        "PREFLOOP_ENGINE_HOST__GATEWAY_URL": f"http://127.0.0.1:{find_port()}",
    }
    code = "from prefloop.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "engine-host"], env=env)
    try:
        ends_at = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
                    said = json.load(answer)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < ends_at
                time.sleep(0.1)
        assert (said["state"], said["checkpoint"], said["url"]) == ("free", None, "http://127.0.0.1:8000")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10)
        assert refused.value.code == 503
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b'prefloop_engine_host_state{state="free"} 1.0' in answer.read()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
