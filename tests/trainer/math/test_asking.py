"""Which pair is asked about, by scores worked out by hand."""

import math

import pytest
import torch

from trainer.math.asking import choose_informative, choose_telling

LN3 = math.log(3)  # sigma(ln 3) = .75


def test_the_pair_that_draws_disagree_about_most_is_informative() -> None:
    # sigma of differences over two draws, and their variance:
    # 0-1: .5, .75 -> .015625; 0-2: .25, .75 -> .0625; 1-2: .25, .5 -> .015625
    draws = torch.tensor([[0.0, LN3], [0.0, 0.0], [LN3, 0.0]])
    assert choose_informative(draws) == (0, 2)


def test_a_doubt_that_both_answers_share_is_none_about_which_is_better() -> None:
    # 0 and 1 rise and fall together: their difference never moves; 2 stands still
    draws = torch.tensor([[9.0, -9.0], [9.0, -9.0], [0.0, 0.1]])
    assert choose_informative(draws) == (0, 2)


def test_far_apart_scores_teach_nothing_however_much_they_vary() -> None:
    # 0-1: sigma(20), sigma(30): both 1; 1-2: sigma(0) = .5, sigma(ln 3) = .75
    draws = torch.tensor([[20.0, 30.0 + LN3], [0.0, LN3], [0.0, 0.0]])
    assert choose_informative(draws) == (1, 2)


def test_the_first_of_equally_informative_pairs_is_taken() -> None:
    assert choose_informative(torch.zeros(4, 10)) == (0, 1)
    # 0-1 and 2-3 disagree equally (+-ln 3), and so do 0-3 and 1-2
    draws = torch.tensor([[LN3, 0.0], [0.0, LN3], [LN3, 0.0], [0.0, LN3]])
    assert choose_informative(draws) == (0, 1)


def test_the_best_is_told_against_the_worst_of_one_draw() -> None:
    draws = torch.tensor([[1.0, -2.0], [3.0, 0.0], [-1.0, 5.0]])
    assert choose_telling(draws, 0) == (1, 2)
    assert choose_telling(draws, 1) == (2, 0)


def test_of_equal_scores_the_first_counts_and_no_candidate_meets_itself() -> None:
    assert choose_telling(torch.zeros(3, 1), 0) == (0, 1)
    assert choose_telling(torch.tensor([[0.0], [1.0], [0.0], [1.0]]), 0) == (1, 0)


@pytest.mark.parametrize("draws", [torch.zeros(1, 10), torch.zeros(3), torch.zeros(0, 0), torch.zeros(2, 2, 2)])
def test_no_pair_comes_of_fewer_than_two_candidates(draws: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no pair"):
        choose_informative(draws)
    with pytest.raises(ValueError, match="no pair"):
        choose_telling(draws, 0)


def test_one_draw_cannot_disagree_with_itself() -> None:
    with pytest.raises(ValueError, match="no pair"):
        choose_informative(torch.zeros(3, 1))


@pytest.mark.parametrize("z", [-1, 2])
def test_a_draw_must_be_one_of_those_there_are(z: int) -> None:
    with pytest.raises(ValueError, match="2 draws"):
        choose_telling(torch.zeros(3, 2), z)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_choose_nothing(value: float) -> None:
    draws = torch.tensor([[0.0, value], [0.0, 0.0]])
    with pytest.raises(ValueError, match="finite"):
        choose_informative(draws)
    with pytest.raises(ValueError, match="finite"):
        choose_telling(draws, 0)
