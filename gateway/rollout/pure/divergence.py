"""How far the canary is from stable, in nats a token, and whether that is below a margin: an asymptotic confidence sequence. Pure.

At places of an answer that the canary gave, drawn at random, both arms say how likely each next token is, and the divergence
KL(canary || stable) of these two distributions is computed: as a Rao-Blackwellised estimate does, which is unbiased and varies less
than the log-ratio of the one token drawn (Amini, Vieira & Cotterell, arXiv 2504.10637). Engines name the likeliest tokens alone, so
all others count as one: that is never more than the true divergence. The mean over the places is one observation, each user's first,
cut at CLIP_MARGINS margins. Their mean is tested as Waudby-Smith et al. do (arXiv 2103.06476): valid however often one looks, for
large numbers of answers. So nothing is said before MIN_ANSWERS, and one made-up observation, the worst for what is to be proved,
stands beside the real ones: answers that are all alike would else have no variance.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from gateway.rollout.pure.guardrails import BLIND, FAIL, NOT_ENOUGH, PASS, Guardrail

KL = "kl"
MIN_ANSWERS = 40
CLIP_MARGINS = 8.0
INTERVAL_ALPHA = 0.1  # two-sided, as the net win rate's
_RHO2 = 0.08  # of the mixture, squared: tightest at about 100 answers (2103.06476, B.1)
_LEAST = 1e-6  # the least that the tokens which are not named may have in all
_MOST_MISSING = 100_000

Logprobs = Mapping[int, float]


class DivergenceTally(msgspec.Struct, frozen=True):
    """Answers that were measured: how many, the sum of their divergences in nats a token, cut, and of the squares."""

    num: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> "DivergenceTally":
        """One more answer."""
        return DivergenceTally(self.num + 1, self.total + value, self.squares + value * value)

    @property
    def mean(self) -> float:
        """Nats a token; 0 without answers."""
        return self.total / max(1, self.num)


class Drift(msgspec.Struct, frozen=True):
    """The mean divergence in nats a token with its 90% interval, and what it must be below. None before there are MIN_ANSWERS."""

    mean: float
    low: float | None
    high: float | None
    margin: float


def compare_next_tokens(canary: Logprobs, stable: Logprobs) -> float:
    """KL(canary || stable) in nats of two next-token distributions of which the likeliest tokens are known, by id."""
    both = canary.keys() & stable.keys()
    total = sum(math.exp(canary[token]) * (canary[token] - stable[token]) for token in both)
    rest = 1.0 - sum(math.exp(canary[token]) for token in both)
    rest_of_stable = 1.0 - sum(math.exp(stable[token]) for token in both)
    if rest > _LEAST:
        total += rest * math.log(rest / max(_LEAST, rest_of_stable))
    return max(0.0, total)


def compare_answers(canary: Sequence[Logprobs], stable: Sequence[Logprobs]) -> float:
    """Nats a token: the mean over an answer's places, of which there is one at least."""
    values = [compare_next_tokens(*place) for place in zip(canary, stable, strict=True)]
    return sum(values) / len(values)


def tally_divergences(measured: Iterable[tuple[str, float]], margin: float) -> DivergenceTally:
    """Each user's first. measured: (user, nats a token), oldest first."""
    firsts: dict[str, float] = {}
    for user, value in measured:
        firsts.setdefault(user, min(value, CLIP_MARGINS * margin))
    values = firsts.values()
    return DivergenceTally(len(values), sum(values), sum(value * value for value in values))


def log_within_e(tally: DivergenceTally, margin: float) -> float:
    """log E that the mean is below the margin; 0 before there are MIN_ANSWERS."""
    return _log_e(tally, margin, CLIP_MARGINS * margin, sign=-1)


def log_beyond_e(tally: DivergenceTally, margin: float) -> float:
    """log E that the mean is above the margin, likewise."""
    return _log_e(tally, margin, 0.0, sign=1)


def _log_e(tally: DivergenceTally, margin: float, made_up: float, *, sign: int) -> float:
    """The half-normal mixture of exp(l S - l^2 n / 2), l > 0, of the standardised sum S; 1/alpha is a one-sided sequence's border."""
    if tally.num < MIN_ANSWERS:
        return 0.0
    full = tally.add(made_up)
    deviation = max(math.sqrt(max(0.0, full.squares / full.num - full.mean**2)), 1e-9 * margin)
    score = sign * full.num * (full.mean - margin) / deviation
    width = full.num * _RHO2 + 1
    z = math.sqrt(_RHO2 / width) * score
    return math.log(2) - math.log(width) / 2 + _half_square_plus_log_normal(z)


def _half_square_plus_log_normal(z: float) -> float:
    """z^2 / 2 + log Phi(z), also where Phi(z) is 0 to a float."""
    if z < -8:
        return -math.log(-z * math.sqrt(2 * math.pi))
    return z * z / 2 + math.log(math.erfc(-z / math.sqrt(2)) / 2)


def bound_divergence(tally: DivergenceTally, alpha: float) -> tuple[float, float] | None:
    """Both ends of the confidence sequence at 1 - alpha (2103.06476, theorem 2.2); None before there are MIN_ANSWERS."""
    n = tally.num
    if n < MIN_ANSWERS:
        return None
    deviation = math.sqrt(max(0.0, tally.squares / n - tally.mean**2) * n / (n - 1))
    width = n * _RHO2 + 1
    radius = deviation * math.sqrt(2 * width / (n * n * _RHO2) * math.log(math.sqrt(width) / alpha))
    return max(0.0, tally.mean - radius), tally.mean + radius


def judge_divergence(
    tally: DivergenceTally, *, margin: float, alpha: float, is_seeable: bool, accepts_blind: bool
) -> tuple[Guardrail, Drift]:
    """The guardrail, and its figures. is_seeable: whether any answer might have been measured; accepts_blind: none need be."""
    log_e, log_alarm, line = log_within_e(tally, margin), log_beyond_e(tally, margin), -math.log(alpha)
    status = PASS if log_e >= line else FAIL if log_alarm >= line else NOT_ENOUGH
    if tally.num == 0 and is_seeable and not accepts_blind:
        status = BLIND
    guardrail = Guardrail(
        name=KL, status=status, log_e=log_e, log_alarm=log_alarm, canary=tally.mean if tally.num else None, stable=None,
        missing=0 if status == PASS else _count_missing(tally, margin, line), needed=tally.num > 0 or not accepts_blind,
        seen=tally.num,
    )  # fmt: skip
    low, high = bound_divergence(tally, INTERVAL_ALPHA) or (None, None)
    return guardrail, Drift(tally.mean, low, high, margin)


def _count_missing(tally: DivergenceTally, margin: float, line: float) -> int:
    """How many more answers just like stable's would bring it to the line."""

    def is_enough(more: int) -> bool:
        return log_within_e(DivergenceTally(tally.num + more, tally.total, tally.squares), margin) >= line

    lower, upper = 0, 1
    while upper < _MOST_MISSING and not is_enough(upper):
        lower, upper = upper, upper * 2
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if is_enough(middle) else (middle, upper)
    return min(upper, _MOST_MISSING)
