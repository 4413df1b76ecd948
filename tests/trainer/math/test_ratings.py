"""Ratings against what is usual, by hand."""

import pytest

from trainer.math.ratings import compare_with_usual


def test_a_rating_is_compared_with_what_its_person_usually_gives() -> None:
    # all: mean .6; a: (2 + 1.2) / 4 = .8, b: (.5 + 1 + 0 + 1.2) / 5 = .3 + .24 = .54
    rated = [("a", 1.0), ("a", 1.0), ("b", 0.5), ("b", 0.5), ("b", 0.0)]
    assert compare_with_usual(rated) == pytest.approx([0.7, 0.7, 0.5 + 0.5 - 0.44, 0.56, 0.06])


def test_the_first_rating_of_all_says_nothing() -> None:
    assert compare_with_usual([("a", 1.0)]) == [0.5]
    assert compare_with_usual([]) == []


def test_no_target_leaves_nought_to_one() -> None:
    rated = [("a", 1.0)] * 50 + [("a", 0.0)]
    assert compare_with_usual(rated)[-1] == 0
