"""Log-probabilities of answers, against the plain way of computing them."""

import pytest
import torch

from tests.trainer.tiny import ask, build_tiny_stack
from trainer.model.logprobs import answer_logprobs, collate


def test_mask_covers_the_answer_and_its_end_alone() -> None:
    batch = collate([([5, 6, 7, 8], 2), ([5, 6, 7], 1)], pad_id=0)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 6, 7, 0]]
    assert batch.answer_mask.tolist() == [[False, False, True, True], [False, True, True, False]]


def test_answers_of_one_batch_score_as_they_do_alone() -> None:
    stack = build_tiny_stack()
    rows = [stack.encode(ask(), "It is Paris."), stack.encode(ask("Hm?"), "Gladly: Paris is the capital of France.")]
    sums, counts = stack.answer_logprobs(rows, None)
    for (ids, start), total, count in zip(rows, sums.tolist(), counts.tolist(), strict=True):
        with torch.no_grad():
            logprobs = torch.log_softmax(stack.causal_lm(input_ids=torch.tensor([ids])).logits[0].float(), -1)
        by_hand = sum(logprobs[t - 1, ids[t]].item() for t in range(start, len(ids)))
        assert total == pytest.approx(by_hand, abs=1e-4)
        assert count == len(ids) - start


def test_prompt_logprobs_agree_with_answer_logprobs() -> None:
    stack = build_tiny_stack()
    ids, start = stack.encode(ask(), "It is Paris.")
    assert sum(stack.prompt_logprobs(ids, None)[start - 1 :]) == pytest.approx(
        stack.answer_logprobs([(ids, start)], None)[0].item(), abs=1e-4
    )


def test_gradients_flow_through_the_answers_logprobs() -> None:
    stack = build_tiny_stack()
    with stack.training("policy") as parameters:
        sums, _ = answer_logprobs(stack.causal_lm, stack.collate([stack.encode(ask(), "It is Paris.")]))
        sums.sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
