"""Loading, proving, draining and loading again."""

import asyncio
import json
from pathlib import Path

import pytest
from conftest import Running, make_checkpoint, wait_until
from engine import BASE_LOGPROBS, PROBE_LOGPROBS, PROBE_TOKENS

from feedback.manifest import Manifest, Probe, read_manifest
from gateway.errors import SwapError
from gateway.settings import GatewaySettings
from gateway.swap import judge_probe, read_probe_logprobs
from gateway.tables import CheckpointRow


def row(folder: Path, number: int) -> CheckpointRow:
    path = make_checkpoint(folder, number)
    manifest = read_manifest(path)
    text = (path / "manifest.json").read_text()
    return CheckpointRow(path.name, number, None, "lora", manifest.digest, str(path), text, "waiting", 0.0, 0.0)


def manifest(logprobs: list[float], base: list[float]) -> Manifest:
    probe = Probe(prompt_token_ids=PROBE_TOKENS, logprobs=logprobs, base_logprobs=base)
    return Manifest(
        id="c", number=1, parent=None, base_digest="", rank=8, digest="", files={}, created_at=0.0, probe=probe
    )


async def test_a_checkpoint_is_loaded_and_proven(gateway: Running, tmp_path: Path) -> None:
    checkpoint = row(tmp_path / "more", 1)
    assert await gateway.context.swap.load(checkpoint) > 0
    state = next(iter(gateway.context.deployment.engines.values()))
    assert checkpoint.id in state.proven and checkpoint.id in gateway.engine.adapters


async def test_an_adapter_that_answers_as_the_base_is_refused(gateway: Running, tmp_path: Path) -> None:
    gateway.engine.probe_logprobs = list(BASE_LOGPROBS)
    with pytest.raises(SwapError, match="as the base does") as refused:
        await gateway.context.swap.load(row(tmp_path / "more", 1))
    assert not refused.value.is_transient


async def test_an_engine_that_is_away_is_a_transient_reason(gateway: Running, tmp_path: Path) -> None:
    await gateway.engine_runner.cleanup()
    with pytest.raises(SwapError) as refused:
        await gateway.context.swap.load(row(tmp_path / "more", 1))
    assert refused.value.is_transient


async def test_a_checkpoint_drains_before_it_is_unloaded(gateway: Running) -> None:
    stable = gateway.context.deployment.view.stable or ""
    gateway.engine.delay_s = 0.5
    asked = asyncio.create_task(gateway.ask())
    await wait_until(lambda: len(gateway.engine.requests) == 1)
    unloading = asyncio.create_task(gateway.context.swap.drain_and_unload(stable, 5.0))
    await asyncio.sleep(0.2)
    assert stable in gateway.engine.adapters
    assert (await asked)["choices"]
    assert await unloading
    assert stable not in gateway.engine.adapters


def test_the_probe_must_lie_within_the_tolerance_and_nearer_to_the_adapter_than_to_the_base() -> None:
    trained = manifest(PROBE_LOGPROBS, BASE_LOGPROBS)
    assert judge_probe([-1.0009, -2.0, -0.5], trained, 1e-3) is None
    assert "off by 0.0011" in (judge_probe([-1.0011, -2.0, -0.5], trained, 1e-3) or "")
    assert "as the base" in (judge_probe(BASE_LOGPROBS, trained, 3.4) or "")
    assert judge_probe([float("nan"), -2.0, -0.5], trained, 1e-3) is not None
    assert judge_probe([-1.0], trained, 1e-3) is not None


def test_an_adapter_that_changes_nothing_may_answer_as_the_base() -> None:
    assert judge_probe(BASE_LOGPROBS, manifest(BASE_LOGPROBS, BASE_LOGPROBS), 1e-3) is None


def test_the_probes_answer_is_read_by_token_and_nonsense_is_refused() -> None:
    rows = [{"token_id:7": -1.5, "token_id:8": -0.1}, {"token_id:9": -2.5}]
    choices = [{"index": i, "logprobs": {"top_logprobs": [row]}} for i, row in enumerate(rows)]
    body = json.dumps({"choices": choices[::-1]}).encode()
    assert read_probe_logprobs(body, [5, 7, 9]) == [-1.5, -2.5]
    assert read_probe_logprobs(body, [5, 7, 3]) == [-1.5, None]
    for bad in (b"", b"{}", b'{"choices": []}'):
        with pytest.raises(SwapError):
            read_probe_logprobs(bad, [5, 7, 9])


def test_a_probe_with_too_few_likely_tokens_proves_nothing() -> None:
    trained = manifest(PROBE_LOGPROBS, BASE_LOGPROBS)
    assert "only 1 of 3" in (judge_probe([PROBE_LOGPROBS[0], None, None], trained, 1e-3) or "")


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
