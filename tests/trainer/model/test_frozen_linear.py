"""Weights held in bfloat16: which layers, that nothing is lost, and that no forward rounds them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.model.test_logprobs import ITEMS
from tests.trainer.tiny import SIZE, build_tiny_backbone, build_tiny_tokenizer, make_prompt
from trainer.learn.sampling.sampler import LocalSampler, SamplingParameters, SamplingRequest
from trainer.model import backbone as backbones
from trainer.model.backbone import Backbone
from trainer.model.frozen_linear import FrozenLinear, hold_in_bfloat16, is_exact
from trainer.model.logprobs import answer_logprobs
from trainer.sections.model import ModelSection
from trainer.seed import build_model


class Casts(TorchDispatchMode):
    """Shapes of what is copied from float32 to bfloat16, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A model's directory whose weights are stored in bfloat16, its lm_head being its embedding."""
    tokenizer = build_tiny_tokenizer()
    torch.manual_seed(0)
    model = build_model(SIZE, tokenizer)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def load(path: Path, dtype: str = "bfloat16") -> Backbone:
    return Backbone.load(path, ModelSection(dtype=dtype), seed=0, device="cpu")


def test_a_weight_is_exact_that_bfloat16_holds() -> None:
    assert is_exact(torch.tensor([1.0, -0.5, 2.0**100, 0.0, 1.0078125]))
    assert not is_exact(torch.tensor([1.0, 1.0 + 2**-9]))
    assert not is_exact(torch.tensor([1.0], dtype=torch.bfloat16))  # it is held so already


def test_a_layer_computes_in_its_inputs_dtype_or_in_autocasts() -> None:
    plain = nn.Linear(8, 4)
    plain.weight.data = plain.weight.data.bfloat16().float()
    model = nn.Sequential(plain, nn.Linear(4, 4))
    assert hold_in_bfloat16(model) == 1 and type(model[1]) is nn.Linear
    frozen, states = model[0], torch.randn(3, 8, requires_grad=True)
    assert isinstance(frozen, FrozenLinear) and not frozen.weight.requires_grad
    for is_cast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
            one, other = frozen(states), plain(states)
        assert one.dtype == (torch.bfloat16 if is_cast else torch.float32)
        assert torch.equal(one, other)
        slopes = [torch.autograd.grad(out.float().square().sum(), states)[0] for out in (one, other)]
        assert torch.equal(*slopes)


def test_a_model_that_was_stored_in_bfloat16_gives_the_same_numbers(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load(stored)
    monkeypatch.setattr(backbones, "hold_in_bfloat16", lambda model: 0)
    plain = load(stored)
    plain.adapters.restore("policy", held.adapters.state("policy"))  # A was drawn in the dtype of the weight beside it
    kinds = {type(layer.base_layer) for layer in held.adapters._layers}
    assert kinds == {FrozenLinear} and isinstance(held.lm_head, FrozenLinear)
    assert held.causal_lm.get_input_embeddings().weight.dtype == torch.float32
    assert held.prompt_logprobs([5, 6, 7, 8], None) == plain.prompt_logprobs([5, 6, 7, 8], None)
    found = []
    for backbone in (held, plain):
        with backbone.adapters.training("policy") as parameters:
            sums, _ = answer_logprobs(backbone, backbone.make_batch(ITEMS))
            found.append((sums, torch.autograd.grad(sums.sum(), parameters)))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(one, other)


def test_no_forward_rounds_the_weights_again(stored: Path) -> None:
    backbone = load(stored)
    matrices = {tuple(layer.base_layer.weight.shape) for layer in backbone.adapters._layers}
    matrices.add(tuple(backbone.lm_head.weight.shape))
    with Casts() as casts, torch.no_grad():
        answer_logprobs(backbone, backbone.make_batch(ITEMS))
    assert casts.shapes and not matrices & set(casts.shapes)


def test_sampling_keeps_keys_as_attention_reads_them(stored: Path) -> None:
    backbone = load(stored)
    request = SamplingRequest([make_prompt(), make_prompt("Who?")], None, 3, SamplingParameters(1.0, 1.0, 12), 0)
    config = backbone.causal_lm.config
    with Casts() as casts:
        assert len(LocalSampler(backbone).sample(request)) == 2
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    kept = [s for s in casts.shapes if len(s) == 4 and s[1] == heads and s[3] == width]
    assert kept and {s[2] for s in kept[2 * config.num_hidden_layers :]} == {
        1
    }  # behind the prompt, one token at a time


def test_weights_that_are_exact_to_float32_alone_stay_as_they_are_and_can_be_trained(stored: Path) -> None:
    assert type(build_tiny_backbone(dtype="bfloat16").lm_head) is nn.Linear
    exact = load(stored, "float32")
    with exact.adapters.training_base() as parameters:
        assert all(p.dtype == torch.float32 for p in parameters.values())
    held = load(stored)
    with pytest.raises(ValueError, match="load the model with dtype float32"), held.adapters.training_base():
        pass
