"""Guardrails and sample ratio against numbers worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway.rollout.observations import Observations
from gateway.rollout.pure.assignment import choose_arm
from gateway.rollout.pure.guardrails import Guardrail, judge_guardrails
from gateway.rollout.pure.rates import (
    CEILING_SHARES,
    SHIFT_BETS,
    Segment,
    clean_users_missing,
    log_ceiling_e,
    log_ratio_e,
    log_split_e,
)
from gateway.rollout.pure.users import Duel, Voter, sum_up
from gateway.tables.rows import Answered, Observation

CEILINGS = {"errors": 0.1, "truncation": 0.1, "refusals": 0.1, "harm": 0.1}


def seen(user: str, arm: str, *, error: bool = False, answered: Answered = "duel", at: float = 0.0) -> Observation:
    return Observation("r", user, arm, answered, 0.5, error, False, False, 0.1, at)


def voters(num: int, harmful: int = 0) -> list[Voter]:
    duels = (Duel(f"u{n}", n, n + 1, 1, harmful_canary=n < harmful, canary_first=n % 2 == 0) for n in range(num))
    return [sum_up([duel], cap=1, window_s=60) for duel in duels]


def test_two_events_of_the_canary_at_half_weight() -> None:
    # theta(2) = 2/3, theta(1) = 1/2: E = ((2/3) / (1/2))^2
    assert math.exp(log_ratio_e([Segment(0.5, 2, 2)], 1.0, [2.0])) == pytest.approx(16 / 9, rel=1e-12)
    # at weight 1/4: theta(2) = .5 / 1.25 = .4, theta(1) = .25; one event each way
    assert math.exp(log_ratio_e([Segment(0.25, 2, 1)], 1.0, [2.0])) == pytest.approx(1.6 * 0.8, rel=1e-12)


def test_ceiling_without_events_is_the_mean_of_the_clean_products() -> None:
    expected = sum(((1 - share * 0.1) / 0.9) ** 29 for share in CEILING_SHARES) / len(CEILING_SHARES)
    assert math.exp(log_ceiling_e(29, 0, 0.1)) == pytest.approx(expected, rel=1e-12)
    assert (1 / 0.9) ** 29 > 20 > (1 / 0.9) ** 28  # p = 0 alone passes 20 after 29 clean users


def test_the_missing_clean_users_are_exactly_what_is_missing() -> None:
    missing = clean_users_missing(0, 0, 0.1, 0.0, 20)
    assert missing == 43
    for num, passes in ((missing, True), (missing - 1, False)):
        own = [seen(f"u{n}", arm) for n in range(num) for arm in ("canary", "stable")]
        result = judge_guardrails(own, voters(num), ceilings=CEILINGS)
        assert result.all_pass is passes
        assert {rate.missing for rate in result.rates if rate.needed} == {missing - num}


def test_without_data_nothing_passes() -> None:
    result = judge_guardrails([], [], ceilings=CEILINGS)
    assert not result.all_pass
    assert {rate.status for rate in result.rates} == {"not enough data"}


def test_a_sensor_that_never_worked_blinds_its_guardrail_until_that_is_accepted() -> None:
    mute = [replace(one, refused=None) for n in range(60) for one in (seen(f"u{n}", "canary"), seen(f"u{n}", "stable"))]

    def status_of(name: str, **given: Any) -> str:
        result = judge_guardrails(mute, voters(60), ceilings=CEILINGS, **given)
        return next(rate.status for rate in result.rates if rate.name == name)

    assert status_of("refusals", accept_blind=()) == "blind" and status_of("errors", accept_blind=()) == "pass"
    assert status_of("refusals", accept_blind=["refusals"]) == "not enough data"
    assert status_of("harm", accept_blind=()) == "blind"  # nobody has ever reported any
    assert status_of("harm", accept_blind=(), sees_harm=True) == "pass" == status_of("harm", accept_blind=["harm"])


def test_a_blind_guardrail_blocks_and_a_failing_one_is_not_called_blind() -> None:
    duels = voters(40, harmful=30)
    result = judge_guardrails([], duels, ceilings=CEILINGS, accept_blind=())
    assert {rate.name: rate.status for rate in result.rates}["harm"] == "fail"
    assert not result.all_pass and not result.none_fails
    assert result.list_blocking(accepts_too_little=True) == ["harm"]
    assert result.list_blocking() == ["errors", "truncation", "refusals", "harm"]
    assert judge_guardrails([], [], ceilings=CEILINGS).none_fails  # nothing was seen yet


def test_answers_that_grow_by_more_than_a_tenth_of_the_limit_raise_an_alarm() -> None:
    def compare(shift: float, num: int) -> Guardrail:
        own = [
            replace(seen(f"u{n}", arm), length=0.3 + (shift if arm == "canary" else 0))
            for n in range(num)
            for arm in ("canary", "stable")
        ]
        return judge_guardrails(own, [], ceilings=CEILINGS).rates[-1]

    longer, shorter, same = compare(0.5, 60), compare(-0.25, 400), compare(0.05, 400)
    assert (longer.name, longer.status, longer.seen) == ("length", "fail", 120) and longer.canary == pytest.approx(0.5)
    assert (shorter.status, same.status) == ("fail", "not enough data")
    # one duel, the canary .5 longer: (1/2) mean over bets of [1 + l (.4 / 1.1)] + [1 - l (.6 / 1.1)]
    expected = (sum(1 + bet * 0.4 / 1.1 for bet in SHIFT_BETS) + sum(1 - bet * 0.6 / 1.1 for bet in SHIFT_BETS)) / 10
    assert math.exp(compare(0.5, 1).log_alarm) == pytest.approx(expected, rel=1e-12)


def test_a_canary_that_errs_fails_and_stable_that_errs_does_not_fail_it() -> None:
    bad = [seen(f"u{n}", arm, error=arm == "canary") for n in range(30) for arm in ("canary", "stable")]
    assert judge_guardrails(bad, [], ceilings=CEILINGS).rates[0].status == "fail"
    good = [seen(f"u{n}", arm, error=arm == "stable") for n in range(60) for arm in ("canary", "stable")]
    assert judge_guardrails(good, [], ceilings=CEILINGS).rates[0].status == "pass"


def test_a_slow_canary_is_told_after_twenty_streamed_duels() -> None:
    """Stable's first ten draw the line; the ten after them are the canary's under the null with 1 in 1,024."""

    def judge(num: int, canary_s: float) -> Guardrail:
        observed = []
        for n in range(num):
            observed.append(replace(seen(f"u{n}", "stable"), latency_first_s=0.09 + 0.001 * (n % 10)))
            observed.append(replace(seen(f"u{n}", "canary"), latency_first_s=canary_s))
        return next(rate for rate in judge_guardrails(observed, [], ceilings=CEILINGS).rates if rate.name == "latency")

    assert judge(20, 1.5).status == "fail" and judge(20, 1.5).log_alarm > math.log(20)
    assert judge(10, 1.5).status == "not enough data" and judge(10, 1.5).seen == 1
    assert judge(200, 0.095).status != "fail"


def test_half_a_duel_says_nothing() -> None:
    own = [seen(f"u{n}", "stable", error=True) for n in range(5)]
    rates = judge_guardrails(own, [], ceilings=CEILINGS).rates
    assert rates[0].stable is None and rates[0].canary is None


def test_of_a_user_whom_two_gateways_saw_first_the_first_request_counts() -> None:
    """The second one's row of the same arm is not stored: of its duel the other arm's half is left."""
    duel = [seen("a", "stable", answered="single", at=1.0), seen("a", "canary", error=True, at=2.0)]
    ramp = [seen("b", "stable", answered="single", at=1.0), seen("b", "canary", error=True, answered="single", at=2.0)]
    errors = judge_guardrails([*duel, *ramp], [], ceilings=CEILINGS).rates[0]
    assert (errors.stable, errors.canary) == (0.0, None)


def test_harm_is_judged_on_each_users_first_duel() -> None:
    harm = judge_guardrails([], voters(40, harmful=20), ceilings=CEILINGS).rates[3]
    assert harm.name == "harm" and harm.status == "fail" and harm.canary == 0.5


def test_an_even_split_raises_no_alarm_and_a_skewed_one_does() -> None:
    assert log_split_e([(0.5, 500, 500)]) < 0
    assert log_split_e([(0.5, 620, 380)]) > math.log(1000)
    assert log_split_e([(0.5, 1, 0)]) == pytest.approx(0.0, abs=1e-12)  # B(51, 50) / B(50, 50) = 1/2


def test_users_are_counted_by_the_arm_that_answered_and_not_by_their_hash() -> None:
    own = [seen(f"u{n}", choose_arm(b"s", f"u{n}", 0.5), answered="single") for n in range(1000)]
    assert judge_guardrails(own, voters(0), ceilings=CEILINGS).log_e_split < math.log(1000)
    misrouted = [replace(o, arm="stable") if n % 3 == 0 else o for n, o in enumerate(own)]
    assert judge_guardrails(misrouted, voters(0), ceilings=CEILINGS).log_e_split > math.log(1000)


def test_pairs_say_nothing_of_the_split() -> None:
    duels = [seen(f"u{n}", arm) for n in range(300) for arm in ("canary", "stable")]
    explore = [seen(f"e{n}", "stable", answered="explore") for n in range(900)]
    result = judge_guardrails([*duels, *explore], [], ceilings=CEILINGS)
    assert result.log_e_split == 0.0 and result.users == 300


def test_an_explore_pair_is_seen_and_not_judged() -> None:
    """Nor is what another gateway took for the user's first request, later."""
    own = [seen("a", "stable", answered="explore", error=True, at=1.0), seen("a", "canary", answered="single", at=2.0)]
    errors = judge_guardrails(own, [], ceilings=CEILINGS).rates[0]
    assert (errors.stable, errors.canary) == (None, None)


def test_the_alarm_forbids_no_promotion_whose_non_inferiority_is_proven() -> None:
    """4.3% against .1%: far worse than stable, and far below a ceiling of 10%."""
    own = [seen(f"{arm}{n}", arm, answered="single", error=n < num)
           for arm, num in (("canary", 43), ("stable", 1)) for n in range(1000)]  # fmt: skip
    errors = judge_guardrails(own, [], ceilings=CEILINGS).rates[0]
    assert errors.log_alarm > math.log(40) and errors.status == "pass" and errors.missing == 0


def observe(rng: np.random.Generator, num_users: int, paired_share: float, weight: float = 0.25) -> list[Observation]:
    """First requests: stable fails at 8%, the canary at 12%; users below `weight` duel, the others' pairs explore."""
    table = Observations(clock=lambda: 1.0)
    table.begin("r", weight)
    draws = rng.random((num_users, 4))
    for n, (unit, pair, *fails) in enumerate(draws):
        bad = {"stable": fails[0] < 0.08, "canary": fails[1] < 0.12}
        own = "canary" if unit < weight else "stable"
        if pair >= paired_share:
            table.record("r", f"u{n}", own, bool(bad[own]), False, False, None)
        elif unit < weight:
            for arm in ("stable", "canary"):
                table.record("r", f"u{n}", arm, bool(bad[arm]), False, False, None, answered="duel")
        else:
            table.record("r", f"u{n}", "stable", bool(bad["stable"]), False, False, None, answered="explore")
    return table.drain()[0]


@pytest.mark.parametrize("paired_share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_canary_that_fails_at_12_percent_passes_beside_8_in_at_most_5_percent_of_rollouts(
    paired_share: float,
) -> None:
    """Whatever share of first requests is answered twice: counted as singles, explore pairs made all of them pass."""
    rng, num_passed, num_runs = np.random.default_rng(7), 0, 60
    for _ in range(num_runs):
        observed = observe(rng, 1200, paired_share)
        users = list(dict.fromkeys(o.user for o in observed))
        for looked_at in (300, 600, 1200):
            seen_by_now = set(users[:looked_at])
            rates = judge_guardrails([o for o in observed if o.user in seen_by_now], [], ceilings=CEILINGS).rates
            if rates[0].status == "pass":
                num_passed += 1
                break
    assert num_passed <= 0.05 * num_runs


def test_a_candidate_that_failed_has_lost_and_both_are_nought() -> None:
    table = Observations(clock=lambda: 5.0)
    table.begin("r", 0.25)
    for arms in (["canary"], ["stable"], ["stable", "canary"]):
        table.record_failed_duel("r", "a", arms)
    table.record_failed_duel("r", "", ["canary"])
    table.record_failed_duel("old", "a", ["canary"])
    rows, failed, _ = table.drain()
    assert rows == [] and [(duel.user, duel.at, duel.outcome) for duel in failed] == [
        ("a", 5.0, -1), ("a", 5.0, 1), ("a", 5.0, 0),
    ]  # fmt: skip
    table.restore(rows, failed, [])
    assert table.drain() == ([], failed, [])


def test_a_canary_at_the_ceiling_and_at_one_and_a_half_times_rarely_passes() -> None:
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(200):
        events = rng.random(300) < 0.1
        total = np.cumsum(events)
        looks = range(10, 300, 10)
        passed += any(log_ceiling_e(n, int(total[n - 1]), 0.1) >= math.log(39) for n in looks)
    assert passed / 200 <= 0.05


def test_only_the_first_request_of_a_user_is_noted_and_a_duel_counts_once_an_arm() -> None:
    table = Observations(clock=lambda: 5.0)
    table.begin("r", 0.25)
    table.record("r", "a", "stable", False, False, False, 0.1)
    table.record("r", "a", "canary", True, False, False, 0.1)
    table.record("r", "b", "stable", False, False, False, 0.1, answered="duel")
    table.record("r", "b", "canary", False, False, False, 0.1, answered="duel")
    table.record("r", "b", "canary", True, False, False, 0.1, answered="duel")
    table.record("r", "", "canary", True, False, False, 0.1)
    table.record("old", "c", "canary", True, False, False, 0.1)
    taken, failed, _ = table.drain()
    assert failed == []
    assert [(o.user, o.arm, o.error, o.weight) for o in taken] == [
        ("a", "stable", False, 0.25), ("b", "stable", False, 0.25), ("b", "canary", False, 0.25),
    ]  # fmt: skip
    table.restore(taken, failed, [])
    assert table.drain() == (taken, [], []) and table.drain() == ([], [], [])
