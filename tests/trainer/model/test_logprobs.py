"""Log-probabilities of answers, against the plain way of computing them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from tests.trainer.tiny import TEXTS, build_tiny_backbone, build_tiny_tokenizer, encode
from trainer.model.backbone import Backbone
from trainer.model.lm_head import Scaling, head_logprobs
from trainer.model.logprobs import answer_logprobs, score_answers
from trainer.sections.model import ModelSection
from trainer.text.batches import make_batch

ITEMS = [((5, 6, 7), [(8, 9, 2), (10, 2)]), ((5, 6, 7, 8, 9), [(11,), (12, 13, 14, 2)])]


def by_hand(backbone: Backbone, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *answer]])
    logprobs = torch.log_softmax(backbone.causal_lm(input_ids=ids, use_cache=False).logits[0].float(), -1)
    return torch.stack([logprobs[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1])]).sum()


@pytest.mark.parametrize("share", [True, False])
def test_sums_are_those_of_each_answer_alone(share: bool) -> None:
    backbone = build_tiny_backbone()
    assert backbone.shares_prompt
    expected = [by_hand(backbone, p, a).item() for p, answers in ITEMS for a in answers]
    with torch.no_grad():
        sums, counts = answer_logprobs(backbone, make_batch(ITEMS, backbone.pad_id, share))
    assert sums.tolist() == pytest.approx(expected, abs=1e-5)
    assert counts.tolist() == [3, 2, 1, 4]


def test_a_shared_prompt_gives_the_gradients_of_separate_rows() -> None:
    backbone = build_tiny_backbone()
    grads = []
    for share in (True, False):
        with backbone.adapters.training("policy") as parameters:
            sums, _ = answer_logprobs(backbone, make_batch(ITEMS, backbone.pad_id, share))
            grads.append(torch.autograd.grad(sums[0] - 2 * sums[1] + sums[3], parameters))
    assert any(g.abs().sum() > 0 for g in grads[0])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_scores_come_in_the_order_given_whatever_the_batches() -> None:
    backbone = build_tiny_backbone(token_budget=40)
    answers = [encode(backbone, text) for text in (*TEXTS[1:], "Hm.")]
    sums, counts = score_answers(backbone, answers, None)
    expected = [by_hand(backbone, a.prompt, a.answer).item() for a in answers]
    assert sums.tolist() == pytest.approx(expected, abs=1e-4)
    assert counts.tolist() == [len(a.answer) for a in answers]
    assert not sums.requires_grad


def test_prompt_logprobs_agree_with_scores() -> None:
    backbone = build_tiny_backbone()
    answer = encode(backbone, "It is Paris.")
    scored = backbone.prompt_logprobs([*answer.prompt, *answer.answer], "policy")
    assert sum(scored[len(answer.prompt) - 1 :]) == pytest.approx(
        score_answers(backbone, [answer], "policy")[0].item(), abs=1e-4
    )


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("scaling", [Scaling(), Scaling(factor=0.25), Scaling(cap=3.0), Scaling(2.0, 5.0)])
def test_chunks_have_the_value_and_gradients_of_full_logits(
    scaling: Scaling, temperature: float, is_trained: bool
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 20_000).requires_grad_(is_trained)
    hidden = torch.randn(7, 16, requires_grad=True)
    targets = torch.randint(0, 20_000, (7,))
    weights = torch.randn(7)
    logits = scaling.apply(head(hidden)) / temperature
    full = torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)
    inputs = (hidden, head.weight, head.bias) if is_trained else (hidden,)
    expected = torch.autograd.grad((full * weights).sum(), inputs)
    chunked = head_logprobs(head, scaling, hidden, targets, temperature=temperature, logits_mb=1)  # 2 rows at a time
    torch.testing.assert_close(chunked, full, atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad((chunked * weights).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_large_vocabulary_is_added_up_without_losing_digits(is_trained: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 49_152, bias=False).requires_grad_(is_trained)
    torch.nn.init.normal_(head.weight, std=0.75)  # logits of 3 by deviation, as a model's
    hidden = torch.randn(148, 16, requires_grad=True)
    targets = torch.randint(0, 49_152, (148,))
    scored = head_logprobs(head, Scaling(), hidden, targets)
    with torch.no_grad():
        logits = head(hidden).double()
    exact = torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)
    assert (scored - exact).abs().max() < 3e-6
    assert abs((scored - exact).mean()) < 3e-7  # a sum over an answer would add up what leans to one side
    (found,) = torch.autograd.grad(scored.sum(), hidden)
    expected = (head.weight[targets].double() - torch.softmax(logits, -1) @ head.weight.double()).detach()
    torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize(("is_trained", "num_passes"), [(True, 2), (False, 1)])
def test_only_a_chunk_of_logits_is_held_and_none_is_kept_for_the_backward_pass(
    is_trained: bool, num_passes: int
) -> None:
    largest: list[int] = []

    class Head(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = super().forward(hidden)
            largest.append(logits.numel())
            return logits

    head = Head(8, 10_000, bias=False).requires_grad_(is_trained)
    hidden = torch.randn(64, 8, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        scored = head_logprobs(head, Scaling(), hidden, torch.zeros(64, dtype=torch.long), logits_mb=1)
    assert max(kept, default=0) < 10_000
    scored.sum().backward()
    assert max(largest) * 18 <= 1 << 20
    assert sum(largest) == num_passes * 64 * 10_000  # a head that is trained computes them again in the backward pass


SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=0.5, sliding_window=64), Gemma2ForCausalLM),
        (CohereConfig(**SIZES, logit_scale=0.0625), CohereForCausalLM),
        (GraniteConfig(**SIZES, logits_scaling=8.0), GraniteForCausalLM),
    ],
)
def test_models_that_scale_or_cap_their_logits_score_as_they_say(config: Any, kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # logits that a cap or a scale changes
    backbone = Backbone(model, build_tiny_tokenizer(), ModelSection(dtype="float32"), 0)
    with torch.no_grad():
        expected = [by_hand(backbone, p, a).item() for p, answers in ITEMS for a in answers]
        sums, _ = answer_logprobs(backbone, backbone.make_batch(ITEMS))
    assert sums.tolist() == pytest.approx(expected, abs=1e-4)
    assert backbone.scaling != Scaling()
