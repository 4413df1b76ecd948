"""Decides whether the canary fails, cuts off, refuses, harms or lags more than stable: one observation a user.

A guardrail passes only on evidence; without data it is "not enough data". Also tests that users were split as intended.
Pure. Latency raises an alarm and does not certify. Length and KL are not covered yet.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gateway.rollout.pure.first_requests import Seen, read_first_requests, see_harm
from gateway.rollout.pure.rates import (
    HIGHER_RATIOS,
    LOWER_RATIOS,
    clean_users_missing,
    log_above_ceiling_e,
    log_ceiling_e,
    log_mean,
    log_ratio_e,
    log_split_e,
)
from gateway.rollout.pure.users import Voter
from gateway.tables.rows import Observation

PASS, FAIL, NOT_ENOUGH = "pass", "fail", "not enough data"
_LATENCY_CEILING = 0.10


@dataclass(frozen=True)
class Guardrail:
    """One rate, with log e-values. `missing`: clean canary users until it passes. Rates are None without users.

    needed: whether a promotion waits for it to pass.
    """

    name: str
    status: str
    log_e: float
    log_alarm: float
    canary: float | None
    stable: float | None
    missing: int
    needed: bool


@dataclass(frozen=True)
class Guardrails:
    """All guardrails and the two sample-ratio checks, as logarithms of e-values."""

    rates: tuple[Guardrail, ...]
    log_e_split: float
    log_e_order: float
    users: int

    @property
    def all_pass(self) -> bool:
        """Whether every guardrail that a promotion needs has passed."""
        return all(rate.status == PASS for rate in self.rates if rate.needed)

    def log_alarm(self, name: str) -> float:
        """The log e-value of the alarm of that name; 0 if there is none."""
        return next((rate.log_alarm for rate in self.rates if rate.name == name), 0.0)


def judge_guardrails(
    observed: Sequence[Observation], voters: Sequence[Voter], *, ceilings: Mapping[str, float],
    alpha: float = 0.05, max_ratio: float = 1.5, accept_blind: Collection[str] = (),
) -> Guardrails:  # fmt: skip
    """Judge every guardrail from first requests (oldest first) and, for harm, from each user's first decided duel.

    accept_blind: guardrails that a promotion needs only if they have enough data to fail.
    """
    first = read_first_requests(observed)
    has_answer = np.where(first.error != 0, np.nan, 0.0)  # of an answer that failed nothing more can be said
    duels = [voter.first for voter in voters if voter.first is not None]
    rates = [
        _judge(name, seen, ceilings[name], alpha, max_ratio, needed=True, may_be_blind=name in accept_blind)
        for name, seen in (
            ("errors", first.see(first.error)),
            ("truncation", first.see(first.truncated + has_answer)),
            ("refusals", first.see(first.refused + has_answer)),
            ("harm", see_harm(duels)),
        )
    ]
    slow = first.see_slow(first.first_token_s)
    rates.append(_judge("latency", slow, _LATENCY_CEILING, alpha, max_ratio, needed=False))
    num_canary_first = sum([duel.canary_first for duel in duels])
    return Guardrails(
        rates=tuple(rates),
        log_e_split=log_split_e(first.count_arms()),
        log_e_order=log_split_e([(0.5, num_canary_first, len(duels) - num_canary_first)]),
        users=first.num_users,
    )


def _judge(
    name: str, seen: Seen, ceiling: float, alpha: float, max_ratio: float, *, needed: bool, may_be_blind: bool = False
) -> Guardrail:
    segments = seen.segment()
    (num_canary, canary), (num_stable, stable) = seen.count(canary=True), seen.count(canary=False)
    lower = [ratio * max_ratio / 1.5 for ratio in LOWER_RATIOS]
    log_ratio = log_ratio_e(segments, max_ratio, lower)
    log_e = log_mean([log_ratio, log_ceiling_e(num_canary, canary, ceiling)])
    # The two alarms share one e-value: worse than stable, and above the ceiling whatever stable does.
    log_alarm = log_ratio_e(segments, 1.0, HIGHER_RATIOS)
    if name == "harm":
        log_alarm = log_mean([log_alarm, log_above_ceiling_e(num_canary, canary, ceiling)])
    # Worse than stable and yet proven good enough is good enough: the alarm alone forbids nothing, it rolls back.
    status = PASS if log_e >= -math.log(alpha) else FAIL if log_alarm >= -math.log(alpha) else NOT_ENOUGH
    missing = clean_users_missing(num_canary, canary, ceiling, log_ratio, 1 / alpha) if status != PASS else 0
    return Guardrail(
        name=name,
        status=status,
        log_e=log_e,
        log_alarm=log_alarm,
        canary=canary / num_canary if num_canary else None,
        stable=stable / num_stable if num_stable else None,
        missing=missing,
        needed=needed and not (may_be_blind and status == NOT_ENOUGH),
    )
