"""Adapters side by side: what one does must not touch another."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.tiny import ask, build_tiny_stack
from trainer.model.stack import AdapterMismatch, PolicyStack


def shake(stack: PolicyStack, adapter: str) -> None:
    with torch.no_grad():
        for parameter in stack.parameters_of(adapter).values():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def read(stack: PolicyStack, adapter: str | None) -> float:
    return stack.answer_logprobs([stack.encode(ask(), "It is Paris.")], adapter)[0].item()


def test_a_fresh_adapter_answers_as_the_base_does() -> None:
    stack = build_tiny_stack()
    assert read(stack, "policy") == read(stack, None)


def test_changing_one_adapter_leaves_base_and_others_alone() -> None:
    stack = build_tiny_stack()
    before = read(stack, None)
    shake(stack, "policy")
    assert read(stack, "policy") != pytest.approx(before, abs=1e-3)
    assert read(stack, None) == read(stack, "stable") == before
    stack.reset_adapter("stable", like="policy")
    assert read(stack, "stable") == read(stack, "policy")
    stack.reset_adapter("policy")
    assert read(stack, "policy") == before != read(stack, "stable")


def test_only_the_adapter_in_training_takes_gradients() -> None:
    stack = build_tiny_stack()
    with stack.training("reward") as parameters:
        trainable = [p for p in stack.peft.parameters() if p.requires_grad]
        assert {id(p) for p in trainable} == {id(p) for p in parameters}
    assert not any(p.requires_grad for p in stack.peft.parameters())


def test_a_saved_adapter_has_the_names_vllm_looks_for_and_loads_again(tmp_path: Path) -> None:
    stack = build_tiny_stack()
    shake(stack, "policy")
    stack.save_adapter("policy", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    assert len(tensors) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (16, 32, "LORA")
    stack.load_adapter("stable", tmp_path)
    assert read(stack, "stable") == read(stack, "policy")


def test_an_adapter_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    stack = build_tiny_stack()
    stack.save_adapter("policy", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(iter(tensors))
    before = read(stack, "stable")
    for damaged in ({name: tensors[name]}, {**tensors, name: tensors[name] * float("nan")}):
        save_file(damaged, tmp_path / "adapter_model.safetensors")
        with pytest.raises(AdapterMismatch):
            stack.load_adapter("stable", tmp_path)
    assert read(stack, "stable") == before


def test_sampling_repeats_under_one_seed_and_batching_does_not_change_greedy_answers() -> None:
    stack = build_tiny_stack()
    prompts = [ask(), ask("Hm?"), ask("What is the capital?")]
    sampled = [stack.generate(prompts, "policy", 8, 1.0, seed=s) for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    together = stack.generate(prompts, "policy", 8, 0.0, seed=0)
    assert together == [stack.generate([prompt], "policy", 8, 0.0, seed=0)[0] for prompt in prompts]
