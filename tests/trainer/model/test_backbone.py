"""The base in memory: what it is asked for, what it finds out about the model, and what it refuses."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import MistralConfig, MistralForCausalLM

from tests.trainer.model.test_logprobs import ITEMS, SIZES
from tests.trainer.tiny import SIZE, build_tiny_backbone, build_tiny_tokenizer, encode
from trainer.model.backbone import Backbone, UnsupportedModel, choose_dtypes, find_turn_ends
from trainer.model.logprobs import answer_logprobs, score_answers
from trainer.model.presets import budget_beside_engine, fits_one_device, plan_memory, resolve_preset
from trainer.sections.model import ModelSection
from trainer.seed import build_model


@pytest.mark.parametrize(
    ("parameters", "device", "processes", "fits", "preset"),
    [
        (3_400_000, "cpu", 1, True, "tiny"), (3_400_000, "cuda", 4, True, "tiny"), (135_000_000, "cpu", 1, True, "small"),
        (135_000_000, "cuda", 1, True, "small"), (8_000_000_000, "cuda", 1, True, "gpu"),
        (8_000_000_000, "cpu", 1, True, "small"), (8_000_000_000, "cuda", 4, True, "gpu"),
        (8_000_000_000, "cuda", 4, False, "fsdp"), (8_000_000_000, "cuda", 1, False, "gpu"),
    ],
)  # fmt: skip
def test_the_preset_follows_size_and_machine(
    parameters: int, device: str, processes: int, fits: bool, preset: str
) -> None:
    assert resolve_preset(parameters, device, processes, fits) == preset


def test_the_trainer_plans_with_what_the_engine_leaves_of_a_gpu() -> None:
    assert budget_beside_engine(80_000, 0.5) == 36_000
    assert budget_beside_engine(80_000, 0.0) == 76_000


def test_a_model_fits_a_device_that_its_weights_leave_room_on() -> None:
    assert fits_one_device(16_000_000_000, 80 << 30) and not fits_one_device(140_000_000_000, 80 << 30)


def test_weights_stay_float32_on_a_cpu_and_are_bfloat16_on_a_gpu() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtypes("bfloat16", cpu) == (torch.float32, torch.bfloat16)
    assert choose_dtypes("auto", cuda) == (torch.bfloat16, torch.bfloat16)
    assert choose_dtypes("float32", cuda) == (torch.float32, torch.float32)


def test_a_memory_limit_cuts_batches_first_and_then_computes_again() -> None:
    assert plan_memory(2048, 1 << 20, None).token_budget == 2048
    assert plan_memory(2048, 1 << 20, 4000).token_budget == 2048
    assert plan_memory(2048, 1 << 20, 1000) == type(plan_memory(1, 1, None))(1000, 1000)
    assert plan_memory(2048, 1 << 20, 100) == type(plan_memory(1, 1, None))(512, 100)
    assert plan_memory(2048, 1 << 20, -5).free_tokens == 0


def test_settings_win_over_the_preset() -> None:
    backbone = build_tiny_backbone(lora_rank=8, logits_mb=7, token_budget=99, max_tokens=20, target_modules=["q_proj"])
    assert (backbone.preset, backbone.adapters.rank, backbone.logits_mb) == ("tiny", 8, 7)
    assert (backbone.token_budget, backbone.max_tokens) == (99, 20)
    assert all("q_proj" in name for name in backbone.adapters.parameters_of("policy"))
    with pytest.raises(ValidationError, match="vLLM takes"):
        ModelSection(lora_rank=12)


def test_computing_again_changes_no_gradient() -> None:
    grads = []
    for memory_mb in (0, 1):
        backbone = build_tiny_backbone(memory_mb=memory_mb)
        assert (backbone.free_tokens == 0) == bool(memory_mb)
        with backbone.adapters.training("policy") as parameters:
            sums, _ = answer_logprobs(backbone, backbone.make_batch(ITEMS))
            assert any(layer.gradient_checkpointing for layer in backbone._checkpointing) == bool(memory_mb)
            grads.append(torch.autograd.grad(sums.sum(), parameters))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_saved_base_loads_and_scores_the_same(tmp_path: Path) -> None:
    backbone = build_tiny_backbone()
    tokenizer = build_tiny_tokenizer()
    torch.manual_seed(0)
    build_model(SIZE, tokenizer).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(tmp_path)
    loaded = Backbone.load(tmp_path, ModelSection(dtype="float32"), seed=0, device="cpu")
    answers = [encode(backbone, "It is Paris.")]
    torch.testing.assert_close(score_answers(loaded, answers, None)[0], score_answers(backbone, answers, None)[0])


def test_autocast_is_close_to_float32() -> None:
    exact, rounded = build_tiny_backbone(), build_tiny_backbone(dtype="bfloat16")
    assert rounded.dtype == torch.bfloat16
    answers = [encode(exact, "It is Paris.")]
    one, other = score_answers(exact, answers, None)[0], score_answers(rounded, answers, None)[0]
    assert one.dtype == other.dtype == torch.float32
    assert 0 < abs(one - other).item() < 0.5


def test_turn_ends_are_the_generation_configurations_else_the_tokenizers() -> None:
    tokenizer = build_tiny_tokenizer()
    model = build_model(SIZE, tokenizer)
    model.generation_config.eos_token_id = [7, 2]
    assert find_turn_ends(model, tokenizer) == [7, 2]
    model.generation_config.eos_token_id = None
    assert find_turn_ends(model, tokenizer) == [2]
    tokenizer.eos_token = None
    with pytest.raises(UnsupportedModel):
        find_turn_ends(model, tokenizer)


def test_a_short_window_keeps_answers_in_rows_of_their_own() -> None:
    narrow = MistralForCausalLM(MistralConfig(**SIZES, head_dim=16, sliding_window=8))
    backbone = Backbone(narrow, build_tiny_tokenizer(), ModelSection(dtype="float32"), 0)
    assert not backbone.shares_prompt
    assert backbone.make_batch(ITEMS).attention_mask is None
    assert not build_tiny_backbone(share_prompt="never").shares_prompt


def test_a_model_with_logits_of_its_own_is_refused() -> None:
    tokenizer = build_tiny_tokenizer()
    model = build_model(SIZE, tokenizer)
    forward = model.forward

    def doubled(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with pytest.raises(UnsupportedModel, match="logits"):
        Backbone(model, tokenizer, ModelSection(dtype="float32"), 0)


def test_a_broken_adapter_is_not_sound() -> None:
    backbone = build_tiny_backbone()
    assert backbone.is_sound("policy")
    with torch.no_grad():
        next(iter(backbone.adapters.parameters_of("policy").values())).fill_(float("nan"))
    assert not backbone.is_sound("policy") and backbone.is_sound("stable")
