"""Decides whether the canary fails, cuts off, refuses, harms or lags more than stable: one observation a user.

A guardrail passes only on evidence; without data it is "not enough data". Also tests that users were split as intended.
Pure. Latency raises an alarm and does not certify. Length and KL are not covered yet.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.rollout.pure.assignment import CANARY
from gateway.rollout.pure.users import Duel, Voter
from gateway.tables.rows import Observation

PASS, FAIL, NOT_ENOUGH = "pass", "fail", "not enough data"
LOWER_RATIOS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.2)  # alternatives to "ratio >= 1.5", times r0 / 1.5
HIGHER_RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)  # alternatives to "ratio <= 1"
CEILING_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)  # alternatives to "rate >= ceiling", as shares of the ceiling
SPLIT_STRENGTH = 100.0
_NUM_FOR_TAU = 40
_LATENCY_EDGES_S = tuple(0.01 * 1.25**k for k in range(45))
_MOST_MISSING = 100_000


@dataclass(frozen=True)
class Segment:
    """Events while the canary's share was `weight` (duels: .5): `num_canary` of `num_events` are the canary's."""

    weight: float
    num_events: int
    num_canary: int


@dataclass(frozen=True)
class Guardrail:
    """One rate, with log e-values. `missing`: clean canary users until it passes. Rates are None without users."""

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


@dataclass(frozen=True)
class _Seen:
    """One user's observation of one rate in one arm."""

    user: str
    canary: bool
    weight: float
    paired: bool
    event: bool


def log_ratio_e(segments: Iterable[Segment], null_ratio: float, grid: Sequence[float]) -> float:
    """log E that the canary's rate over stable's is not `null_ratio` but one of `grid`; theta = w r / (w r + 1 - w)."""
    used = [segment for segment in segments if segment.num_events and 0 < segment.weight < 1]

    def log_likelihood(ratio: float) -> float:
        total = 0.0
        for segment in used:
            odds = segment.weight * ratio / (1 - segment.weight)
            total += segment.num_canary * math.log(odds / (1 + odds))
            total -= (segment.num_events - segment.num_canary) * math.log1p(odds)
        return total

    null = log_likelihood(null_ratio)
    return _log_mean([log_likelihood(ratio) - null for ratio in grid])


def log_ceiling_e(num_users: int, num_events: int, ceiling: float) -> float:
    """log E that the canary's rate is below `ceiling`: the mean over p of prod (p/c)^x ((1-p)/(1-c))^(1-x)."""
    terms = []
    for share in CEILING_SHARES:
        rate = share * ceiling
        clean = (num_users - num_events) * (math.log1p(-rate) - math.log1p(-ceiling))
        if num_events == 0:
            terms.append(clean)
        elif share > 0:
            terms.append(clean + num_events * math.log(share))
        else:
            terms.append(-math.inf)
    return _log_mean(terms)


def log_above_ceiling_e(num_users: int, num_events: int, ceiling: float) -> float:
    """log E that the canary's rate is above `ceiling`."""
    terms = []
    for factor in (1.25, 1.5, 2.0, 3.0, 5.0):
        rate = min(factor * ceiling, 0.999)
        gain = num_events * math.log(rate / ceiling)
        terms.append(gain + (num_users - num_events) * (math.log1p(-rate) - math.log1p(-ceiling)))
    return _log_mean(terms)


def log_split_e(splits: Iterable[tuple[float, int, int]]) -> float:
    """log E that users are not split by weight; rows: (w, n1 canary, n0 stable). Beta(cw, c(1-w)) prior, c = 100."""
    total = 0.0
    for weight, canary, stable in splits:
        if not 0 < weight < 1:
            continue
        a, b = SPLIT_STRENGTH * weight, SPLIT_STRENGTH * (1 - weight)
        total += _log_beta(a + canary, b + stable) - _log_beta(a, b)
        total -= canary * math.log(weight) + stable * math.log1p(-weight)
    return total


def judge_guardrails(
    observed: Sequence[Observation], voters: Sequence[Voter], *, ceilings: Mapping[str, float],
    alpha: float = 0.05, max_ratio: float = 1.5,
) -> Guardrails:  # fmt: skip
    """Judge every guardrail from first requests (oldest first) and, for harm, from each user's first decided duel."""
    observed = _keep_first(observed)
    firsts = [voter.first for voter in voters if voter.first is not None]
    rates = [
        _judge(name, seen, ceilings[name], alpha, max_ratio, needed=True)
        for name, seen in (
            ("errors", [_see(o, o.error) for o in observed]),
            ("truncation", [_see(o, o.truncated) for o in observed if not o.error]),
            ("refusals", [_see(o, o.refused) for o in observed if not o.error]),
            ("harm", _see_harm(firsts)),
        )
    ]
    rates.append(_judge("latency", _see_latency(observed), 0.10, alpha, max_ratio, needed=False))
    num_canary_first = sum(duel.canary_first for duel in firsts)
    return Guardrails(
        rates=tuple(rates),
        log_e_split=log_split_e(_count_arms(observed)),
        log_e_order=log_split_e([(0.5, num_canary_first, len(firsts) - num_canary_first)]),
        users=len({o.user for o in observed}),
    )


def clean_users_missing(num_users: int, num_events: int, ceiling: float, log_ratio: float, threshold: float) -> int:
    """How many more users of the canary, none with an event, would bring (E_ratio + E_ceiling) / 2 to `threshold`."""
    lower, upper = 0, 1
    while upper < _MOST_MISSING and not _enough(num_users + upper, num_events, ceiling, log_ratio, threshold):
        lower, upper = upper, upper * 2
    if _enough(num_users, num_events, ceiling, log_ratio, threshold):
        return 0
    while upper - lower > 1:
        middle = (lower + upper) // 2
        if _enough(num_users + middle, num_events, ceiling, log_ratio, threshold):
            upper = middle
        else:
            lower = middle
    return min(upper, _MOST_MISSING)


def _enough(num_users: int, num_events: int, ceiling: float, log_ratio: float, threshold: float) -> bool:
    return _log_mean([log_ratio, log_ceiling_e(num_users, num_events, ceiling)]) >= math.log(threshold)


def _judge(
    name: str, seen: Sequence[_Seen], ceiling: float, alpha: float, max_ratio: float, *, needed: bool
) -> Guardrail:
    segments = _segment(seen)
    canary = [one.event for one in seen if one.canary]
    stable = [one.event for one in seen if not one.canary]
    lower = [ratio * max_ratio / 1.5 for ratio in LOWER_RATIOS]
    log_ratio = log_ratio_e(segments, max_ratio, lower)
    log_e = _log_mean([log_ratio, log_ceiling_e(len(canary), sum(canary), ceiling)])
    # The two alarms share one e-value: worse than stable, and above the ceiling whatever stable does.
    log_alarm = log_ratio_e(segments, 1.0, HIGHER_RATIOS)
    if name == "harm":
        log_alarm = _log_mean([log_alarm, log_above_ceiling_e(len(canary), sum(canary), ceiling)])
    # Worse than stable and yet proven good enough is good enough: the alarm alone forbids nothing, it rolls back.
    status = PASS if log_e >= -math.log(alpha) else FAIL if log_alarm >= -math.log(alpha) else NOT_ENOUGH
    missing = clean_users_missing(len(canary), sum(canary), ceiling, log_ratio, 1 / alpha) if status != PASS else 0
    return Guardrail(
        name=name,
        status=status,
        log_e=log_e,
        log_alarm=log_alarm,
        canary=sum(canary) / len(canary) if canary else None,
        stable=sum(stable) / len(stable) if stable else None,
        missing=missing,
        needed=needed,
    )


def _segment(seen: Sequence[_Seen]) -> list[Segment]:
    both = Counter(one.user for one in seen if one.event and one.paired)
    counts: dict[tuple[bool, float], list[int]] = {}
    for one in seen:
        if one.event and both[one.user] < 2:  # an event in both candidates of a duel says nothing of their ratio
            key = (one.paired, 0.5 if one.paired else one.weight)
            counts.setdefault(key, [0, 0])[one.canary] += 1
    return [Segment(key[1], stable + canary, canary) for key, (stable, canary) in sorted(counts.items())]


def _keep_first(observed: Sequence[Observation]) -> list[Observation]:
    """Each user's first request, if it is judged: a single answer, or both halves of a duel.

    Who was first answered by an explore pair is seen and not judged: only stable has such pairs, and users of the canary
    who might have had one duel in another segment.
    A gateway does not know whom another has seen. Of a later duel there, the half of the user's own arm meets the row of
    the first request, and the other one alone enters the table: no user's first, and all from one arm.
    """
    rows_of: dict[str, list[Observation]] = {}
    for o in observed:
        rows_of.setdefault(o.user, []).append(o)
    first: list[Observation] = []
    for rows in rows_of.values():
        alone = next((o for o in rows if o.answered != "duel"), None)
        if alone is not None:
            first += [alone] if alone.answered == "single" else []
        elif len(rows) == 2:
            first += rows
    return first


def _see(observation: Observation, event: bool) -> _Seen:
    return _Seen(observation.user, observation.arm == CANARY, observation.weight, observation.answered == "duel", event)


def _see_harm(firsts: Sequence[Duel]) -> list[_Seen]:
    return [
        _Seen(duel.user, canary, 0.5, True, harmful)
        for duel in firsts
        for canary, harmful in ((True, duel.harmful_canary), (False, duel.harmful_stable))
    ]


def _see_latency(observed: Sequence[Observation]) -> list[_Seen]:
    """Whether the first token came later than tau: stable's p95 over its first 40 users, who are then not judged."""
    early = [o.latency_first_s for o in observed if o.arm != CANARY and o.latency_first_s is not None][:_NUM_FOR_TAU]
    if len(early) < _NUM_FOR_TAU:
        return []
    quantile = sorted(early)[math.ceil(0.95 * _NUM_FOR_TAU) - 1]
    tau = next((edge for edge in _LATENCY_EDGES_S if edge >= quantile), quantile)
    num_stable, seen = 0, []
    for o in observed:
        if o.latency_first_s is None:
            continue
        if num_stable >= _NUM_FOR_TAU:
            seen.append(_see(o, o.latency_first_s > tau))
        num_stable += o.arm != CANARY
    return seen


def _count_arms(observed: Sequence[Observation]) -> list[tuple[float, int, int]]:
    """By weight, users of single answers by the arm that really answered; of a duel both did."""
    counts: dict[float, list[int]] = {}
    for o in observed:
        if o.answered == "single":
            counts.setdefault(o.weight, [0, 0])[o.arm == CANARY] += 1
    return [(weight, canary, stable) for weight, (stable, canary) in sorted(counts.items())]


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_mean(logs: Sequence[float]) -> float:
    top = max(logs)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))
