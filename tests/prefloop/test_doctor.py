"""Doctor's findings: what was seen, and what to do."""

from pathlib import Path

import httpx
import pytest

from feedback.signing import make_signing_key
from prefloop.doctor import check_cpu, check_memory, check_store, diagnose_engine


def test_memory_is_judged_by_what_is_available():
    assert check_memory("MemTotal: 99999999 kB\nMemAvailable: 16777216 kB\n").is_ok
    finding = check_memory("MemAvailable: 2097152 kB\n")
    assert not finding.is_ok
    assert finding.seen == "2.0 GiB available"


def test_cpu_needs_avx2():
    assert check_cpu("flags : fpu avx2 avx512f\n").seen.startswith("avx512f")
    assert not check_cpu("flags : fpu sse2\n").is_ok


def fake_engine(*, lora: bool, template: bool):
    def get(method: str, url: str, **_: object) -> httpx.Response:
        request = httpx.Request(method, url)
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "base", "parent": None}]}, request=request)
        if path == "/v1/load_lora_adapter":
            body = {"error": {"message": "No adapter found"}} if lora else {"detail": "Not Found"}
            return httpx.Response(404, json=body, request=request)
        return httpx.Response(200 if template else 400, json={}, request=request)

    return get


def test_engine_without_runtime_lora_is_told_how_to_get_it(tmp_path):
    findings = {f.name: f for f in diagnose_engine("http://e", tmp_path, fake_engine(lora=False, template=True))}
    assert not findings["runtime LoRA"].is_ok
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in findings["runtime LoRA"].remedy
    assert findings["chat template"].is_ok


def test_engine_with_all_it_needs_passes(tmp_path):
    assert all(f.is_ok for f in diagnose_engine("http://e", tmp_path, fake_engine(lora=True, template=True)))


def test_engine_that_does_not_answer_is_one_finding(tmp_path):
    def refuse(method: str, url: str, **_: object) -> httpx.Response:
        raise httpx.ConnectError("refused")

    findings = list(diagnose_engine("http://e", tmp_path, refuse))
    assert [f.is_ok for f in findings] == [False]


def test_a_store_and_its_keys_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert list(check_store()) == []
    ours, other = (make_signing_key(tmp_path / name) for name in ("ours.pem", "other.pem"))
    (tmp_path / "trusted.pem").write_bytes(other.public_pem)
    monkeypatch.setenv("PREFLOOP_CHECKPOINTS_URL", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("PREFLOOP_SIGNING_KEY_FILE", str(tmp_path / "ours.pem"))
    monkeypatch.setenv("PREFLOOP_TRUSTED_KEYS_FILE", str(tmp_path / "trusted.pem"))
    store, keys = check_store()
    assert store.is_ok and store.seen.startswith("0 checkpoints in file://")
    assert not keys.is_ok and keys.seen == f"{ours.fingerprint} is not trusted"
    (tmp_path / "trusted.pem").write_bytes(other.public_pem + ours.public_pem)
    (tmp_path / "store").write_bytes(b"no directory")
    monkeypatch.setenv("PREFLOOP_CHECKPOINTS_URL", "nosuch://bucket")
    store, keys = check_store()
    assert not store.is_ok and keys.is_ok
