"""What is loaded computes what its configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from tests.trainer.model.test_logprobs import SIZES
from tests.trainer.tiny import SIZE, TEXTS, build_tiny_tokenizer, encode
from trainer.full_model import measure_probe
from trainer.model.backbone import Backbone
from trainer.model.loading import load_causal_lm
from trainer.model.logprobs import score_answers
from trainer.sections.model import ModelSection
from trainer.seed import build_model


@pytest.fixture
def capped(tmp_path: Path) -> Path:
    """A Gemma 2 whose attention a cap of .05 changes: its logits are far above that."""
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, head_dim=16, attn_logit_softcapping=0.05, query_pre_attn_scalar=1, sliding_window=64)
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(30)
    model.save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    build_tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def compute_logits(directory: Path, attention: str, ids: list[int]) -> torch.Tensor:
    model = Gemma2ForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation=attention)
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def test_a_cap_on_attentions_logits_is_kept(capped: Path) -> None:
    backbone = Backbone.load(capped, ModelSection(dtype="float32"), seed=0, device="cpu")
    said = encode(backbone, "Gladly: Paris is the capital of France.", TEXTS[0])
    ids, start = [*said.prompt, *said.answer], len(said.prompt)
    expected, without = (
        torch.log_softmax(compute_logits(capped, attention, ids), -1)[start - 1 : -1]
        .gather(1, torch.tensor(said.answer)[:, None])
        .sum()
        for attention in ("eager", "sdpa")
    )
    scored = score_answers(backbone, [said, said], None)[0]
    assert abs(expected - without) > 0.1
    torch.testing.assert_close(scored, expected.expand(2), atol=1e-4, rtol=0)


def test_the_probe_of_a_whole_model_is_measured_with_its_cap(capped: Path) -> None:
    probe = measure_probe(capped, None)
    expected = torch.log_softmax(compute_logits(capped, "eager", probe.prompt_token_ids), -1)[:-1]
    chosen = expected.gather(1, torch.tensor(probe.prompt_token_ids[1:])[:, None]).squeeze(1)
    assert probe.logprobs == pytest.approx(chosen.tolist(), abs=1e-4)


def test_others_have_torchs_own_attention(tmp_path: Path) -> None:
    build_model(SIZE, build_tiny_tokenizer()).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    assert load_causal_lm(tmp_path, torch.float32).config._attn_implementation == "sdpa"
