"""The third update's advantages and loss, who is asked what, and the drift of taste, by hand."""

import math
import random

import pytest
import torch

from bench.learning.asking import Shares, choose_pair, draw_share, tell_apart
from bench.learning.ladder import Rung, change_taste, make_frozen, summarise
from bench.learning.third import find_advantages, reinforce_loss
from bench.learning.worlds import load_world
from prefloop.demo.intervals import Share
from trainer.text.pairs import Answer


def test_advantages_are_win_chances_against_the_others_less_a_half() -> None:
    draws = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    won = 1 / (1 + math.exp(-1.0))
    expected = [won - 0.5, (1 - won + 0.5) / 2 - 0.5, (1 - won + 0.5) / 2 - 0.5]
    assert find_advantages(draws, 0.0, eps=0.0).tolist() == pytest.approx(expected, abs=1e-6)
    shifted = find_advantages(draws, 0.0, eps=0.01) - find_advantages(draws, 0.0, eps=0.0)
    assert shifted.tolist() == pytest.approx([0.01] * 3, abs=1e-6)


def test_the_gradient_of_the_third_update_is_the_advantage_less_beta_times_the_log_ratio() -> None:
    logprobs = torch.tensor([-2.0, -3.0], requires_grad=True)
    reinforce_loss(logprobs, torch.tensor([0.3, -0.2]), torch.tensor([-2.5, -3.0]), beta=0.1).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.3 + 0.1 * 0.5, 0.2], abs=1e-6)


def test_questions_are_asked_in_their_shares() -> None:
    rng = random.Random(0)
    drawn = [draw_share(Shares(0.1, 0.3, 0.6, 4), rng) for _ in range(5000)]
    assert drawn.count("random") / 5000 == pytest.approx(0.1, abs=0.015)
    assert drawn.count("telling") / 5000 == pytest.approx(0.6, abs=0.02)


def test_telling_asks_show_the_best_and_the_worst_in_random_order() -> None:
    answers = [Answer(text=text) for text in ("a", "b", "c")]
    draws = torch.tensor([[0.0, 0.0], [2.0, 2.0], [-1.0, -1.0]])
    rng = random.Random(0)
    shown = {tuple(answer.text for answer in choose_pair(answers, "telling", draws, rng)) for _ in range(40)}
    assert shown == {("b", "c"), ("c", "b")}


def test_two_answers_that_read_the_same_are_one() -> None:
    assert [a.text for a in tell_apart([Answer(text="a"), Answer(text="b"), Answer(text="a")])] == ["a", "b"]


def test_drift_makes_the_second_best_style_the_best() -> None:
    world = load_world("capitals")
    assert change_taste(world).utilities == {**world.utilities, "complete": 0.2, "terse": 1.0}


def test_what_the_gate_asks_is_left_to_nobody_else() -> None:
    world = load_world("capitals")
    frozen, questions, examined = make_frozen(world)
    asked = {row.prompt.key for row in frozen.rows}
    assert len(asked) == 24 + 6 * 4  # a phrasing of each asked fact, four of six facts that nobody asks about
    assert not asked & {question.text for question in [*questions, *examined]}
    assert len(questions) == 24 * 11 and len(examined) == 10 * 12
    facts_of_the_gate = {q.fact for q in world.held_out()} - {q.fact for q in examined}
    assert len(facts_of_the_gate) == 6


def test_a_ladder_counts_promotions_and_those_clearly_worse() -> None:
    def share(low: float, high: float) -> Share:
        return Share((low + high) / 2, low, high, 100, 16)

    rungs = [Rung(200, share(0.6, 0.8), share(0.6, 0.8), 0.1), Rung(400, share(0.75, 0.95), share(0.3, 0.45), 0.05)]
    summary = summarise(rungs, 5, is_drifting=True, followed_after=None)
    assert summary == {
        "rounds": 5, "promotions": 2, "clearly_worse": 1, "last_over_first": [0.85, 0.75, 0.95], "wrong": 0.05,
        "followed_after": None,
    }  # fmt: skip


def test_a_ladder_without_promotions_says_so() -> None:
    assert summarise([], 3, is_drifting=False, followed_after=None)["last_over_first"] is None
