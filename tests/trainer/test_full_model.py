"""A model's directory becomes a checkpoint whose probe tells it from another model."""

from pathlib import Path

import pytest
import torch

from feedback.checkpoint_store import fetch_checkpoint, open_store
from feedback.manifest import verify
from feedback.signing import make_signing_key, parse_trusted_keys
from gateway.engines.probe import judge_probe
from tests.trainer.tiny import build_tiny_backbone
from trainer.full_model import main


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and one whose weights were moved a little."""
    folder = tmp_path_factory.mktemp("models")
    stack = build_tiny_backbone()
    model = stack.adapters.peft.unload()
    for name in ("base", "moved"):
        model.save_pretrained(folder / name)
        stack.tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                torch.manual_seed(number)
                parameter.add_(torch.randn_like(parameter) * 0.05)
    (folder / "moved" / "README.md").write_text("Not served.")
    return folder / "base", folder / "moved"


def test_a_model_is_published_with_a_probe_that_tells_it_from_its_base(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, moved = models
    assert main([str(moved), "--checkpoints", str(tmp_path), "--told-from", str(base), "--parent", "c-1"]) == 0
    manifest = verify(Path(capsys.readouterr().out.strip()))
    assert (manifest.kind, manifest.rank, manifest.number, manifest.parent) == ("full", 0, 0, "c-1")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= manifest.files.keys()
    assert "README.md" not in manifest.files
    probe = manifest.probe
    assert len(probe.logprobs) == len(probe.base_logprobs) == len(probe.prompt_token_ids) - 1
    assert judge_probe(list(probe.logprobs), manifest, 1e-3) is None
    refused = judge_probe(list(probe.base_logprobs), manifest, 1e-3)
    assert refused is not None and "as the base does" in refused


def test_numbers_rise_and_a_gateway_that_is_away_is_a_plain_failure(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        assert main([str(models[0]), "--checkpoints", str(tmp_path)]) == 0
        path = Path(capsys.readouterr().out.strip())
        assert verify(path).number == number
        assert verify(path).probe.base_logprobs == []
        (path / "model.safetensors").touch()
    key = tmp_path / "key"
    key.write_text("pl_1")
    away = ["--gateway", "http://127.0.0.1:1", "--key-file", str(key)]
    assert main([str(models[0]), "--checkpoints", str(tmp_path), *away]) == 1


def test_a_model_goes_to_the_store_signed_and_its_number_is_taken_on_every_machine(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, url = make_signing_key(tmp_path / "key.pem"), f"file://{tmp_path / 'store'}"
    monkeypatch.setenv("PREFLOOP_CHECKPOINTS_URL", url)
    monkeypatch.setenv("PREFLOOP_SIGNING_KEY_FILE", str(tmp_path / "key.pem"))
    names = []
    for machine in ("one", "two"):
        assert main([str(models[0]), "--checkpoints", str(tmp_path / machine)]) == 0
        names.append(Path(capsys.readouterr().out.strip()).name)
    store, trusted = open_store(url), parse_trusted_keys([key.public_pem])
    assert store.list_ids() == names and store.list_numbers() == [0, 1]
    assert verify(fetch_checkpoint(store, names[1], tmp_path / "engine", trusted)).is_full
