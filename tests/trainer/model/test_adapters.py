"""Adapters side by side: what one does must not touch another."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.tiny import build_tiny_backbone, encode
from trainer.model.adapters import AdapterMismatch
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers


def shake(backbone: Backbone, adapter: str) -> None:
    with torch.no_grad():
        for parameter in backbone.adapters.parameters_of(adapter).values():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def read(backbone: Backbone, adapter: str | None) -> float:
    return score_answers(backbone, [encode(backbone, "It is Paris.")], adapter)[0].item()


def test_changing_one_adapter_leaves_base_and_others_alone() -> None:
    backbone = build_tiny_backbone()
    before = read(backbone, None)
    assert read(backbone, "policy") == before
    shake(backbone, "policy")
    assert read(backbone, "policy") != pytest.approx(before, abs=1e-3)
    assert {read(backbone, name) for name in (None, "stable", "reward", "auditor", "value")} == {before}
    backbone.adapters.reset("stable", like="policy")
    assert read(backbone, "stable") == read(backbone, "policy")
    backbone.adapters.reset("policy")
    assert read(backbone, "policy") == before != read(backbone, "stable")


def test_only_the_adapter_in_training_takes_gradients() -> None:
    backbone = build_tiny_backbone()
    with backbone.adapters.training("reward") as parameters:
        trainable = [p for p in backbone.causal_lm.parameters() if p.requires_grad]
        assert {id(p) for p in trainable} == {id(p) for p in parameters}
    assert not any(p.requires_grad for p in backbone.causal_lm.parameters())


def test_adapters_in_turn_each_take_their_own_gradients() -> None:
    backbone = build_tiny_backbone()
    batch = backbone.make_batch([(encode(backbone, "It is Paris.").prompt, [(20, 21)])])
    with backbone.adapters.training_in_turn() as switch:
        for name in ("policy", "value", "policy"):
            switch(name)
            backbone.hidden(batch).sum().backward()
    touched = {
        name: sum(p.grad is not None for p in backbone.adapters.parameters_of(name).values())
        for name in backbone.adapters.NAMES
    }
    assert touched == {"policy": 28, "stable": 0, "reward": 0, "auditor": 0, "value": 28}
    assert not any(p.requires_grad for p in backbone.causal_lm.parameters())


def test_an_adapter_follows_another_by_a_share_of_the_way() -> None:
    backbone = build_tiny_backbone()
    shake(backbone, "policy")
    backbone.adapters.reset("stable", like="policy", is_blank=True)
    assert read(backbone, "stable") == read(backbone, None) != read(backbone, "policy")
    backbone.adapters.follow("stable", "policy", 0.75)
    leader, follower = (list(backbone.adapters.parameters_of(name).values()) for name in ("policy", "stable"))
    torch.testing.assert_close(follower[0], leader[0])  # A was copied
    torch.testing.assert_close(follower[1], 0.25 * leader[1])  # B was 0


def test_embeddings_and_lm_head_have_no_adapter() -> None:
    names = build_tiny_backbone().adapters.parameters_of("policy")
    assert len(names) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_a_saved_adapter_has_the_names_vllm_looks_for_and_loads_again(tmp_path: Path) -> None:
    backbone = build_tiny_backbone()
    shake(backbone, "policy")
    backbone.adapters.save("policy", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (16, 32, "LORA")
    backbone.adapters.load("stable", tmp_path)
    assert read(backbone, "stable") == read(backbone, "policy")


def test_a_kept_state_is_a_copy_and_restores(tmp_path: Path) -> None:
    backbone = build_tiny_backbone()
    shake(backbone, "policy")
    state, before = backbone.adapters.state("policy"), read(backbone, "policy")
    shake(backbone, "policy")
    backbone.adapters.restore("policy", state)
    assert read(backbone, "policy") == before


def test_an_adapter_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    backbone = build_tiny_backbone()
    backbone.adapters.save("policy", tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    before = read(backbone, "stable")
    for damaged in ({name: tensors[name]}, {**tensors, name: tensors[name] * float("nan")}):
        save_file(damaged, path)
        with pytest.raises(AdapterMismatch):
            backbone.adapters.load("stable", tmp_path)
    path.write_bytes(b"\0" * 40)
    with pytest.raises(AdapterMismatch):
        backbone.adapters.load("stable", tmp_path)
    assert read(backbone, "stable") == before
