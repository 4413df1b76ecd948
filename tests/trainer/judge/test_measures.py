"""Figures are differences paired by prompt, made of hand-written answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.trainer.tiny import build_tiny_backbone, make_prompt
from trainer.judge.answers import HarmScreen
from trainer.judge.frozen import FrozenRow, read_row
from trainer.judge.likelihoods import compare_anchors, compare_bias, encode_answers, measure_kl
from trainer.judge.measures import (
    Asked,
    Figures,
    compare,
    compare_answers,
    compare_scores,
    compare_texts,
    list_asked,
    measure_answer,
    sample_answers,
)
from trainer.learn.sampling.sampler import LocalSampler, Sampled, SamplingParameters
from trainer.text.pairs import Answer

HARM = HarmScreen(["idiot"])


@dataclass(frozen=True)
class FakeScores:
    draws: torch.Tensor


def row(text: str = "What is the capital of France?", **line: Any) -> FrozenRow:
    return read_row({"messages": [{"role": "user", "content": text}], **line})[0]


def say(text: str, finish_reason: str = "stop", num_tokens: int = 5) -> Sampled:
    return Sampled(Answer(text=text, ids=tuple(range(num_tokens)), finish_reason=finish_reason), ())


def held_out(number: int, **tags: str) -> Asked:
    return Asked(make_prompt(f"question {number}", key=f"k{number}", tags=tags))


def test_figures_are_paired_by_prompt() -> None:
    asked = [held_out(0), held_out(1)]
    (figure,) = compare("x", asked, [1, 1, 1, 0], [0, 1, 0, 0], 2)
    assert (figure.candidate, figure.stable) == (0.75, 0.25)
    assert (figure.change.mean, figure.change.std_error, figure.change.n) == (0.5, 0.0, 2)  # both rose by a half


def test_what_does_not_apply_to_a_prompt_is_left_out() -> None:
    asked = [held_out(0), held_out(1), held_out(2)]
    (figure,) = compare("x", asked, [1, None, 0], [0, None, 0], 5)
    assert (figure.change.mean, figure.change.n) == (0.5, 2)
    assert compare("x", asked, [None] * 3, [None] * 3, 2) == []


def test_slices_by_tag_and_kind_are_measured_where_they_are_large_enough() -> None:
    asked = [held_out(i, lang="de" if i < 3 else "en") for i in range(5)]
    figures = compare("x", asked, [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], 3)
    assert {figure.slice: figure.change.mean for figure in figures} == {"": 0.6, "lang=de": 1.0}
    mixed = [Asked(make_prompt(), row(fact="Paris")), *asked[:2]]
    assert [each.slice for each in compare("x", mixed, [1, 1, 1], [0, 0, 0], 2)] == ["", "kind=heldout", "lang=de"]


def test_each_answer_is_looked_at_as_its_row_says() -> None:
    fact = Asked(make_prompt(), row(fact="Paris", max_tokens=9))
    right = measure_answer(fact, say("Paris."), HARM, {})
    assert (right["facts"], right["short"]) == (1, 0)  # a right answer may be one word
    assert "tokens" not in right and "unfinished" not in right
    assert measure_answer(fact, say("Rome."), HARM, {})["short"] == 1
    open_answer = measure_answer(held_out(1), say("You idiot", "length", 7), HARM, {})
    assert {"tokens": 7, "unfinished": 1, "short": 1, "harm": 1}.items() <= open_answer.items()
    assert (
        measure_answer(held_out(1), say("Yes it is.", num_tokens=5), HARM, {})["tokens"] == 4
    )  # the turn end is no word
    attack = measure_answer(Asked(make_prompt(), row(kind="redteam")), say("I cannot help you"), HARM, {})
    assert attack["attacks"] == 0 and "refusals" not in attack  # there a refusal is right


def test_bleu_and_rouge_are_one_for_the_reference_and_nought_for_other_words() -> None:
    assert compare_texts("The cat sat on the mat.", ["The cat sat on the mat."]) == {
        "bleu": pytest.approx(1), "rouge_l": pytest.approx(1),
    }  # fmt: skip
    assert compare_texts("Nothing alike here", ["The cat sat on the mat."])["rouge_l"] == 0
    # ROUGE-L: 3 of 3 words in order, of 6: precision 1, recall 1/2, F 2/3
    assert compare_texts("The cat sat", ["The cat sat on the mat."])["rouge_l"] == pytest.approx(2 / 3)


def test_a_pair_of_prompts_that_is_answered_differently_is_biased() -> None:
    asked = list_asked([row(kind="bias", other=[{"role": "user", "content": "And of Spain?"}])], [])
    assert [each.is_other for each in asked] == [False, True]
    alike = [say("It is fine to say.", num_tokens=10)] * 2
    unlike = [say("It is fine to say.", num_tokens=10), say("I cannot say that", num_tokens=4)]
    figures = {f.name: f for f in compare_answers(asked, unlike, alike, HARM, {}, 2)}
    assert figures["bias_refusals"].candidate == 1 and figures["bias_refusals"].stable == 0
    assert figures["bias_length"].candidate == pytest.approx(math.log(10 / 4))


def test_scores_are_compared_within_each_draw() -> None:
    asked = [held_out(0), held_out(1), Asked(make_prompt(), row(kind="redteam"))]
    stable = torch.tensor([[0.0, 10.0], [1.0, 11.0], [0.0, 0.0]])  # the draws differ by 10 everywhere
    candidate = stable + torch.tensor([[1.0, 1.0], [3.0, 3.0], [99.0, 99.0]])
    (figure,) = compare_scores("reward", asked, FakeScores(candidate), FakeScores(stable), 5)
    assert figure.change.mean == pytest.approx(2.0)  # without the red-team row
    assert figure.change.std_error == pytest.approx(1.0)  # sqrt(2 / 2): what the draws share is not counted


def test_numbers_have_names_of_their_own_and_infinite_ones_are_left_out() -> None:
    (figure,) = compare("x", [held_out(0)], [1], [0], 2)
    named = Figures((figure,), 3.0, math.nan, 1).as_dict()
    assert named == {"kl_base": 3.0, "num_prompts": 1.0, "policy_x": 1.0, "stable_x": 0.0, "x_change": 1.0}


def test_what_is_over_held_out_prompts_alone_has_their_name_too() -> None:
    asked = [held_out(0), held_out(1), Asked(make_prompt(), row(fact="Paris"))]
    name = "policy_x[kind=heldout]"
    for chosen, values, number in ((asked, [1, 0, 1], 0.5), (asked[:2], [1, 1], 1.0), (asked, [1, 0, None], 0.5)):
        figures = Figures(tuple(compare("x", chosen, values, values, 2)))
        assert figures.as_dict()[name] == number
    for chosen in (asked[:1], asked[1:]):  # too few
        assert name not in Figures(tuple(compare("x", chosen, [1] * len(chosen), [1] * len(chosen), 2))).as_dict()


def test_frozen_rows_are_sampled_up_to_their_own_limit() -> None:
    backbone = build_tiny_backbone()
    asked = list_asked([row(fact="Paris", max_tokens=2)], [make_prompt("Paris?")])
    sampled = sample_answers(LocalSampler(backbone), asked, "policy", SamplingParameters(1.0, 1.0, 8), 2, 0)
    assert [each.answer.max_tokens for each in sampled] == [8, 8, 2, 2]
    assert max(len(each.answer.ids or ()) for each in sampled[2:]) <= 2
    encoded = encode_answers(backbone, asked, sampled)
    assert [each.answer for each in encoded] == [each.answer.ids for each in sampled]
    assert encoded[2].prompt == backbone.transcriber.encode_prompt(asked[1].prompt)


def test_kl_is_nought_to_itself_and_positive_to_another() -> None:
    backbone = build_tiny_backbone()
    with torch.no_grad():
        for parameter in backbone.adapters.parameters_of("policy").values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    asked = list_asked([], [make_prompt(), make_prompt("Paris?")])
    sampled = sample_answers(LocalSampler(backbone), asked, "policy", SamplingParameters(0.7, 1.0, 8), 50, 0)
    encoded = encode_answers(backbone, asked, sampled)
    itself, base = measure_kl(backbone, encoded, "policy", ("policy", None), 0.7)
    assert itself == pytest.approx(0, abs=1e-5)
    assert base > 0.1
    drawn = sum(math.fsum(each.logprobs) for each in sampled) / len(sampled)
    policy_less_policy = measure_kl(backbone, encoded, "policy", ("stable",), 0.7)[0]
    assert math.isfinite(drawn) and policy_less_policy == pytest.approx(base, abs=1e-4)  # stable starts as the base


def test_anchors_and_bias_pairs_are_scored_without_sampling() -> None:
    backbone = build_tiny_backbone()
    rows = read_row({"messages": make_prompt().messages, "fact": "Paris", "references": ["It is Paris.", "Go away."]})
    figures = {figure.name: figure for figure in compare_anchors(backbone, [rows[1]], 0.7, 5)}
    assert figures["anchors"].candidate == figures["anchors"].stable > 0
    assert 0 < figures["references"].candidate < 1
    pair = row(kind="bias", other=[{"role": "user", "content": "Go away. Paris?"}], answer="It is Paris.")
    (bias,) = compare_bias(backbone, [pair], 5)
    assert bias.candidate == bias.stable > 0
    assert compare_bias(backbone, [row(kind="bias", other=pair.prompt.messages)], 5) == []
