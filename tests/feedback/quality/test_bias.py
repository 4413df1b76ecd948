"""Whether people choose by place or by time: numbers worked out by hand or printed in papers, and votes from the tables."""

from pathlib import Path
from random import Random

import pytest

from feedback.choices import store_comparison
from feedback.database import create_tables, metadata, open_database, write_transaction
from feedback.quality.bias import (
    Vote,
    estimate_difference,
    estimate_share,
    list_judging,
    load_votes,
    measure_bias,
    measure_bias_by_share,
)
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_comparison


def test_wilsons_interval_is_the_one_of_the_tables() -> None:
    ten = estimate_share(8, 10)
    assert (ten.estimate, ten.low, ten.high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)
    none = estimate_share(0, 10)  # z^2 / (n + z^2) = 3.8415 / 13.8415
    assert (none.low, none.high) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert (estimate_share(0, 0).low, estimate_share(0, 0).high) == (0.0, 1.0)


def test_newcombes_interval_is_the_one_of_his_paper() -> None:
    """Newcombe (1998), table II, method 10: 56/70 - 48/80, and 9/10 - 3/10."""
    one = estimate_difference(56, 70, 48, 80)
    assert (one.estimate, one.low, one.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    other = estimate_difference(9, 10, 3, 10)
    assert (other.estimate, other.low, other.high) == pytest.approx((0.6, 0.1705, 0.8090), abs=1e-4)
    assert estimate_difference(1, 1, 0, 0).low == -1.0


def test_each_user_counts_once_by_the_oldest_choice_and_unknown_ones_not_at_all() -> None:
    votes = [Vote("ann", "first"), Vote("ann", "second"), Vote("", "second"), Vote("bob", "second", "second")]
    bias = measure_bias(votes)
    assert (bias.shown_first.num, bias.shown_first.estimate) == (2, 0.5)
    assert (bias.finished_first.num, bias.finished_first.estimate) == (1, 1.0)
    assert not bias.is_biased


def test_votes_are_sorted_into_their_cells() -> None:
    """30 of 40 choose the first where it was complete first, 12 of 40 where it was not: a difference of .45."""
    cells = {("first", "first"): 30, ("second", "first"): 10, ("first", "second"): 12, ("second", "second"): 28}
    votes = [Vote(f"{cell}{n}", *cell) for cell, num in cells.items() for n in range(num)]  # type: ignore[arg-type]
    bias = measure_bias(votes)
    assert bias.shown_first.estimate == pytest.approx(42 / 80)
    assert bias.finished_first.estimate == pytest.approx(58 / 80)
    assert bias.finish_effect.estimate == pytest.approx(0.45)
    assert bias.is_biased and bias.finish_effect.excludes(0.0) and not bias.shown_first.excludes(0.5)


@pytest.mark.parametrize("finish_effect", [0.0, 0.3])
def test_people_who_like_the_first_place_are_not_taken_for_people_who_like_the_quick_answer(
    finish_effect: float,
) -> None:
    """And the other way round: in 200 worlds the interval misses the truth about one time in twenty."""
    rng = Random(11)
    missed = detected = 0
    for world in range(200):
        votes = []
        for user in range(300):
            is_first = rng.random() < 0.7  # the first is often complete first
            liking = 0.6 + (finish_effect / 2 if is_first else -finish_effect / 2)
            chosen = "first" if rng.random() < liking else "second"
            votes.append(Vote(f"{world}-{user}", chosen, "first" if is_first else "second"))  # type: ignore[arg-type]
        effect = measure_bias(votes).finish_effect
        missed += effect.excludes(finish_effect)
        detected += effect.excludes(0.0)
    assert missed <= 20  # 10 expected; more than 20 has a chance of .001
    assert (detected <= 20) if finish_effect == 0.0 else (detected >= 190)


def test_the_newest_choices_between_two_answers_are_read_oldest_first(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:{tmp_path / 'choices.db'}")
    create_tables(engine, metadata)
    with write_transaction(engine) as conn:
        for n, preferred in enumerate(("second", "first", "tie", "skip", "second", "first")):
            comparison = make_comparison(f"cmp-{n}", user=f"u{n}", finished_first="first" if n % 2 else None)
            store_comparison(conn, comparison)
            record_choice(conn, comparison.id, preferred, None, False, "t", comparison.created_at + n)  # type: ignore[arg-type]
        votes = load_votes(conn, 3)
    assert votes == [Vote("u1", "first", "first"), Vote("u4", "second", None), Vote("u5", "first", "first")]


def test_votes_between_picked_answers_are_shown_apart_and_judge_nothing() -> None:
    votes = [
        Vote("ann", "first"),
        Vote("bob", "second", share="random"),
        *(Vote(f"u{n}", "first", share="telling") for n in range(9)),
        Vote("cid", "second", share="informative"),
    ]
    assert measure_bias(list_judging(votes)).shown_first.num == 2
    by_share = measure_bias_by_share(votes)
    assert {share: bias.shown_first.num for share, bias in by_share.items()} == {
        "informative": 1,
        "random": 2,
        "telling": 9,
    }
    assert by_share["telling"].is_biased and not by_share["random"].is_biased
