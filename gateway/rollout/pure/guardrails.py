"""Decides whether the canary fails, cuts off, refuses, harms, lags or rambles more than stable: one observation a user.

A guardrail passes only on evidence; without data it is "not enough data", and without a sensor that works "blind". Also tests
that users were split as intended. Pure. Latency and length raise alarms and certify nothing; KL is not covered.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gateway.rollout.pure.first_requests import Floats, Seen, count_explored, read_first_requests, see_harm
from gateway.rollout.pure.rates import (
    HIGHER_RATIOS,
    LOWER_RATIOS,
    clean_users_missing,
    log_above_ceiling_e,
    log_ceiling_e,
    log_mean,
    log_ratio_e,
    log_shift_e,
    log_split_e,
)
from gateway.rollout.pure.users import Voter
from gateway.tables.rows import Observation

PASS, FAIL, NOT_ENOUGH, BLIND = "pass", "fail", "not enough data", "blind"
ACCEPTED = "accepted"  # it fails, and may
LENGTH_MARGIN = 0.1
_LATENCY_CEILING = 0.10
SENSORS = {
    "errors": "status, broken streams and time-outs of engines",
    "truncation": "finish reason of the answer",
    "refusals": "the engine's refusal field, and phrases in the answer's first 300 characters",
    "harm": "report button and API flag",
    "latency": "time to a stream's first token",
    "token_latency": "time from a stream's first token to its last",
    "length": "tokens of both answers of a duel",
    "kl": "next-token probabilities of both arms along the canary's answers in duels",
}


@dataclass(frozen=True)
class Guardrail:
    """One rate, with log e-values. `missing`: clean canary users until it passes. Rates are None without users.

    seen: answers of which its sensor (SENSORS) saw anything, num_canary: of them the canary's, where it is a rate. needed: whether
    a promotion waits for it.
    """

    name: str
    status: str
    log_e: float
    log_alarm: float
    canary: float | None
    stable: float | None
    missing: int
    needed: bool
    seen: int
    num_canary: int = 0


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
        return not self.list_blocking()

    @property
    def none_fails(self) -> bool:
        """Whether no guardrail that a promotion needs has failed, or is blind, however little they have seen."""
        return not self.list_blocking(accepts_too_little=True)

    def list_blocking(self, *, accepts_too_little: bool = False) -> list[str]:
        """Guardrails that a promotion needs and that have not passed; accepts_too_little: without those that saw too little."""
        accepted = (PASS, NOT_ENOUGH) if accepts_too_little else (PASS,)
        return [rate.name for rate in self.rates if rate.needed and rate.status not in accepted]

    def log_alarm(self, name: str) -> float:
        """The log e-value of the alarm of that name; 0 if there is none."""
        return next((rate.log_alarm for rate in self.rates if rate.name == name), 0.0)


@dataclass(frozen=True)
class _Limits:
    """How all rates of one judgement are judged. is_late: nothing is to be certified, and stable may hardly serve."""

    alpha: float
    max_ratio: float
    accept_blind: Collection[str]
    is_late: bool


def judge_guardrails(
    observed: Sequence[Observation], voters: Sequence[Voter], *, ceilings: Mapping[str, float],
    alpha: float = 0.05, max_ratio: float = 1.5, accept_blind: Collection[str] = ("harm",), sees_harm: bool = False,
    is_late: bool = False,
) -> Guardrails:  # fmt: skip
    """Judge every guardrail from first requests (oldest first) and, for harm, from each user's first duel with an answer.

    accept_blind: those that need no sensor that works. sees_harm: whether anybody has ever reported harm here. is_late: the
    canary's rates are held against their ceilings whatever stable's are, for it may serve nearly everybody.
    """
    first = read_first_requests(observed)
    has_answer = np.where(first.error != 0, np.nan, 0.0)  # of an answer that failed nothing more can be said
    duels = [voter.first for voter in voters if voter.first is not None]
    limits = _Limits(alpha, max_ratio, accept_blind, is_late)
    num = len(first.user) - int(np.isnan(has_answer).sum())  # answers that a sensor might have read

    def explored(event: str) -> tuple[int, int]:
        return count_explored(observed, event) if is_late else (0, 0)

    rates = [
        _judge("errors", first.see(first.error), ceilings["errors"], limits, explored=explored("error")),
        _judge(
            "truncation", first.see(first.truncated + has_answer), ceilings["truncation"], limits, num_seeable=num,
            explored=explored("truncated"),
        ),
        _judge(
            "refusals", first.see(first.refused + has_answer), ceilings["refusals"], limits, num_seeable=num,
            explored=explored("refused"),
        ),
        _judge(
            "harm", see_harm([duel for duel in duels if not duel.unscreened]), ceilings["harm"], limits,
            num_seeable=0 if sees_harm else len(duels), num_read=0,
        ),
        _judge("latency", first.see_slow(first.first_token_s), _LATENCY_CEILING, limits, needed=False),
        _judge("token_latency", first.see_slow(first.token_s), _LATENCY_CEILING, limits, needed=False),
        _judge_length(first.compare_lengths(), alpha),
    ]  # fmt: skip
    num_canary_first = sum([duel.canary_first for duel in duels])
    return Guardrails(
        rates=tuple(rates),
        log_e_split=log_split_e(first.count_arms()),
        log_e_order=log_split_e([(0.5, num_canary_first, len(duels) - num_canary_first)]),
        users=first.num_users,
    )


def _judge(
    name: str, seen: Seen, ceiling: float, limits: _Limits, *, needed: bool = True, num_seeable: int = 0,
    num_read: int | None = None, explored: tuple[int, int] = (0, 0),
) -> Guardrail:  # fmt: skip
    """One rate. num_seeable: answers that the sensor might have read, num_read: and has (all that were seen): else it is blind.

    explored: answers and events of explore pairs, which are held against the ceiling.
    """
    segments = seen.segment()
    (num_canary, canary), (num_stable, stable) = seen.count(canary=True), seen.count(canary=False)
    lower = [ratio * limits.max_ratio / 1.5 for ratio in LOWER_RATIOS]
    log_ratio = log_ratio_e(segments, limits.max_ratio, lower)
    log_e = log_mean([log_ratio, log_ceiling_e(num_canary, canary, ceiling)])
    # Two alarms may share one e-value: worse than stable, and above the ceiling whatever stable does.
    log_alarm = log_ratio_e(segments, 1.0, HIGHER_RATIOS)
    if needed and (limits.is_late or name == "harm"):
        above = log_above_ceiling_e(num_canary + explored[0], canary + explored[1], ceiling)
        log_alarm = log_mean([log_alarm, above])
    line = -math.log(limits.alpha)
    # Worse than stable and yet proven good enough is good enough: the alarm alone forbids nothing, it rolls back.
    status = PASS if log_e >= line else FAIL if log_alarm >= line else NOT_ENOUGH
    never_worked = num_seeable > 0 and (num_canary + num_stable if num_read is None else num_read) == 0
    if never_worked and status != FAIL and name not in limits.accept_blind:
        status = BLIND
    missing = clean_users_missing(num_canary, canary, ceiling, log_ratio, 1 / limits.alpha) if status != PASS else 0
    return Guardrail(
        name=name,
        status=status,
        log_e=log_e,
        log_alarm=log_alarm,
        canary=canary / num_canary if num_canary else None,
        stable=stable / num_stable if num_stable else None,
        missing=missing,
        needed=needed,
        seen=num_canary + num_stable,
        num_canary=num_canary,
    )


def _judge_length(differences: Floats, alpha: float) -> Guardrail:
    """Whether the canary's answers are longer or shorter by more than the margin; its rate is the mean difference."""
    log_alarm = log_shift_e(differences, LENGTH_MARGIN)
    mean = float(differences.mean()) if len(differences) else None
    status = FAIL if log_alarm >= -math.log(alpha) else NOT_ENOUGH
    return Guardrail("length", status, 0.0, log_alarm, mean, None, 0, needed=False, seen=2 * len(differences))
