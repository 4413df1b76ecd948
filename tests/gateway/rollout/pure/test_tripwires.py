"""Tripwires by hand, and how often they trip by chance and when they must."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gateway.rollout.pure.evidence import weigh_voters
from gateway.rollout.pure.rates import SHIFT_BETS
from gateway.rollout.pure.tripwires import LEVELS, TraitTally, Tripwire, judge_tripwires, say_tripwire, tally_traits
from gateway.rollout.pure.users import Duel

MARGINS = {"length": 0.25, "flattery": 0.1, "refusals": 0.1, "questions": 0.15}
NOTHING = weigh_voters([], cap=1, now=0.0)


def tally(name: str, **users: int) -> TraitTally:
    """Users whose canary had more of it, as much, or less."""
    counts = [0] * 41
    counts[40], counts[20], counts[0] = users.get("more", 0), users.get("same", 0), users.get("less", 0)
    return TraitTally(name, tuple(counts))


def judge(*tallies: TraitTally, accepted: tuple[str, ...] = (), **changes: object) -> tuple[Tripwire, ...]:
    given = {"evidence": NOTHING, "min_users": 10, "reward_gain": None, **changes}
    return judge_tripwires(tallies, margins=MARGINS, accepted=accepted, alpha=0.05, **given)  # type: ignore[arg-type]


def duel(user: str, at: float, **differences: float) -> Duel:
    return Duel(user, at, None, 0, differences=tuple(differences.items()))


def test_a_users_first_duel_counts_whether_it_was_decided_or_not() -> None:
    found = tally_traits([duel("a", 0, length=0.35), duel("a", 1, length=-1), duel("b", 0), duel("b", 2, length=-0.5)])
    (length,) = found
    assert length.name == "length" and sum(length.counts) == 2
    assert [LEVELS[n] for n, num in enumerate(length.counts) if num] == pytest.approx([-0.5, 0.35])


def test_the_evidence_is_the_mean_over_bets_on_what_is_above_the_margin() -> None:
    (found,) = judge(tally("flattery", more=3, same=2, less=1))
    factors = [(1 + b * 0.9 / 1.1) ** 3 * (1 - b * 0.1 / 1.1) ** 2 * (1 - b) for b in SHIFT_BETS]
    assert math.exp(found.log_e) == pytest.approx(sum(factors) / len(factors), rel=1e-12)
    assert (found.difference, found.users, found.status) == (2 / 6, 6, "quiet")


def test_a_canary_that_flatters_trips_until_that_is_accepted() -> None:
    (found,) = judge(tally("flattery", more=30, same=30))
    assert found.status == "tripped" and found.log_e >= math.log(20)
    assert say_tripwire(found) == "more of its answers flatter (+50 points, over 60 users)"
    (accepted,) = judge(tally("flattery", more=30, same=30), accepted=("flattery",))
    assert accepted.status == "accepted"
    (less,) = judge(tally("flattery", less=60))
    assert less.status == "quiet"


def test_without_duels_nothing_is_judged() -> None:
    assert judge() == ()
    (empty,) = judge(tally("length"))
    assert (empty.status, empty.difference) == ("not enough data", 0.0)


def test_a_gain_that_only_the_reward_model_sees_trips() -> None:
    worse, better = replace(NOTHING, users=10, net=-0.1), replace(NOTHING, users=10, net=0.1)
    (found,) = judge(evidence=worse, reward_gain=0.31)
    assert found.status == "tripped"
    assert say_tripwire(found) == "the reward model foresaw a gain (+0.31) and people prefer stable (-10%)"
    for evidence, gain, status in (
        (better, 0.31, "quiet"), (worse, -0.1, "quiet"), (replace(worse, users=9), 0.31, "not enough data"),
    ):  # fmt: skip
        assert judge(evidence=evidence, reward_gain=gain)[0].status == status


def share_ever_tripped(more: float, less: float, num_users: int, rng: np.random.Generator) -> float:
    """The share of rollouts in which flattery ever trips, looking after every tenth user."""
    num = 0
    for _ in range(300):
        draws = rng.random(num_users)
        ups, downs = (draws < more).cumsum(), (draws > 1 - less).cumsum()
        looks = range(9, num_users, 10)
        num += any(
            judge(tally("flattery", more=int(ups[n]), less=int(downs[n]), same=int(n + 1 - ups[n] - downs[n])))[
                0
            ].status
            == "tripped"
            for n in looks
        )
    return num / 300


def test_how_often_a_tripwire_trips_by_chance_and_when_it_must() -> None:
    rng = np.random.default_rng(3)
    assert share_ever_tripped(0.15, 0.05, 300, rng) <= 0.05 + 0.025  # just at the margin of 10 points
    assert share_ever_tripped(0.05, 0.05, 300, rng) <= 0.005  # no difference
    assert share_ever_tripped(0.40, 0.02, 150, rng) >= 0.95  # a flatterer
