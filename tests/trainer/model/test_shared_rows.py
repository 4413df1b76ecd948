"""Answers to one prompt are scored in one row, and come out as they do alone."""

import pytest

from tests.trainer.tiny import build_tiny_backbone, encode
from trainer.model.logprobs import group_by_prompt, score_answers


def test_answers_to_one_prompt_share_a_row_and_come_back_in_their_order() -> None:
    backbone = build_tiny_backbone()
    questions = ["What is the capital of France?", "Go away?"]
    texts = ["It is Paris.", "Go away.", "Paris", "France", "Gladly: Paris.", "capital"]
    answers = [encode(backbone, text, questions[i % 2]) for i, text in enumerate(texts)]
    assert group_by_prompt(answers, most=2) == [[0, 2], [1, 3], [4], [5]]
    together, counts = score_answers(backbone, answers, "policy")
    apart = [score_answers(backbone, [answer], "policy")[0].item() for answer in answers]
    assert together.tolist() == pytest.approx(apart, abs=1e-4)
    assert counts.tolist() == [len(answer.answer) for answer in answers]
