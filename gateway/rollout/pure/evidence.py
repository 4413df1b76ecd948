"""Decides from duels whether people prefer the canary: e-processes over users, valid however often one looks.

Users enter once, in the order of their first duel, each with (wins - losses) / cap. Promises: with a canary that is no
better, the chance that E ever reaches 1/alpha is at most alpha (Ville). Pure; Waudby-Smith & Ramdas, arXiv 2010.09686.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from gateway.rollout.pure.users import Voter

BETS = np.array([0.02, 0.04, 0.08, 0.12, 0.2, 0.3, 0.45, 0.6])
FUTILITY_MARGIN = 0.10
_MAX_POINTS = 200

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EnteredUser:
    """A user who is complete, entered at `at`, with the score of Voter."""

    user: str
    score: int
    at: float


@dataclass(frozen=True)
class Point:
    """The evidence when `users` had entered."""

    at: float
    users: int
    net: float
    low: float
    high: float
    log_e: float
    log_e_inferior: float


@dataclass(frozen=True)
class Evidence:
    """Logarithms of e-values, the net win rate with its 90% interval, and what was counted.

    scores: entered users per possible score, from -cap to cap.
    """

    log_e: float
    log_e_inferior: float
    log_e_futile: float
    users: int
    waiting: int
    votes: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    net: float
    low: float
    high: float
    top_user_share: float
    scores: tuple[int, ...]


def enter_users(voters: Iterable[Voter], *, now: float, max_users: int | None = None) -> tuple[list[EnteredUser], int]:
    """Voters who are complete by `now`, in order of first duel; returns them and how many still wait.

    One who is complete early waits for all before: entering by completion lets heavy users in first. Beyond `max_users`
    all wait.
    """
    order = sorted(voters, key=attrgetter("first_asked_at", "user"))
    entered: list[EnteredUser] = []
    at = -math.inf
    for voter in order:
        if voter.complete_at > now or len(entered) == max_users:
            break
        at = max(at, voter.complete_at)
        entered.append(EnteredUser(voter.user, voter.score, at))
    return entered, len(order) - len(entered)


def score_values(cap: int) -> FloatArray:
    """The possible Y of a user: -1, ..., 1 in steps of 1/cap."""
    return np.arange(-cap, cap + 1) / cap


def log_superiority(counts: FloatArray, cap: int, delta: float = 0.0) -> FloatArray:
    """log E+ against H0: mu <= delta. counts: (..., 2 cap + 1) users per possible score. Returns (...)."""
    steps = np.log1p(np.outer(score_values(cap) - delta, BETS))  # (2 cap + 1, 8): log(1 + l_j (Y - delta))
    return _log_mean_exp(counts @ steps)


def log_inferiority(counts: FloatArray, cap: int, margin: float = 0.0) -> FloatArray:
    """log E- against H0: mu >= margin; the same bets on -Y."""
    return log_superiority(counts[..., ::-1], cap, -margin)


def log_futility(counts: FloatArray, cap: int) -> FloatArray:
    """log E against H0: mu >= .10, shown and never acted on; bets l/(1 + margin) keep every factor positive."""
    steps = np.log1p(np.outer(FUTILITY_MARGIN - score_values(cap), BETS / (1 + FUTILITY_MARGIN)))
    return _log_mean_exp(counts @ steps)


def _log_mean_exp(sums: FloatArray) -> FloatArray:
    top = sums.max(axis=-1, keepdims=True)
    mean: FloatArray = np.log(np.exp(sums - top).mean(axis=-1)) + top[..., 0]
    return mean


def invert_bets(counts: FloatArray, cap: int, alpha: float) -> tuple[FloatArray, FloatArray]:
    """The interval of all m that neither one-sided test rejects at `alpha`; counts: (n, 2 cap + 1), returns (n,), (n,).

    Bets l_j/(1+m) below and l_j/(1-m) above keep every factor positive, make E monotone in m, agree with the gate at 0.
    """
    low = _lower_end(counts, cap, alpha)
    return low, -_lower_end(counts[:, ::-1], cap, alpha)


def _lower_end(counts: FloatArray, cap: int, alpha: float) -> FloatArray:
    values = score_values(cap)
    below, above = np.full(len(counts), -1.0), np.full(len(counts), 1.0)
    for _ in range(30):  # E is decreasing in m: bisect for the m at which it is 1/alpha
        middle = (below + above) / 2
        ratio = (values[None, :] + 1) / (1 + middle[:, None]) - 1  # (n, 2 cap + 1) = (Y - m) / (1 + m)
        steps = np.log1p(ratio[:, :, None] * BETS)  # (n, 2 cap + 1, 8)
        rejected = _log_mean_exp(np.einsum("nk,nkj->nj", counts, steps)) >= -math.log(alpha)
        below, above = np.where(rejected, middle, below), np.where(rejected, above, middle)
    return below


def weigh_voters(
    voters: Sequence[Voter], *, cap: int, now: float, alpha: float = 0.05, delta: float = 0.0,
    max_users: int | None = None,
) -> Evidence:  # fmt: skip
    """Weigh a rollout's voters as of `now`, summed up with the same `cap`. Invariant to the order they are given in."""
    entered, waiting = enter_users(voters, now=now, max_users=max_users)
    total = np.bincount([user.score + cap for user in entered], minlength=2 * cap + 1).astype(float)
    votes = sum([voter.votes for voter in voters])
    low, high = invert_bets(total[None, :], cap, alpha)
    return Evidence(
        log_e=float(log_superiority(total, cap, delta)),
        log_e_inferior=float(log_inferiority(total, cap)),
        log_e_futile=float(log_futility(total, cap)),
        users=len(entered),
        waiting=waiting,
        votes=votes,
        wins=sum([voter.wins for voter in voters]),
        losses=sum([voter.losses for voter in voters]),
        ties=sum([voter.ties for voter in voters]),
        both_bad=sum([voter.both_bad for voter in voters]),
        net=float(total @ score_values(cap)) / len(entered) if entered else 0.0,
        low=float(low[0]),
        high=float(high[0]),
        top_user_share=max([voter.votes for voter in voters], default=0) / max(1, votes),
        scores=tuple(int(num) for num in total),
    )


def count_users_to_lose(scores: Sequence[int], cap: int, alpha: float = 0.05, delta: float = 0.0) -> int:
    """How many users would have to vanish, those who like the canary most first, until E+ is below 1/alpha; 0 if it is."""
    best_first = np.repeat(np.arange(2 * cap, -1, -1), np.array(scores[::-1], dtype=int))
    left = np.tile(np.array(scores, dtype=float), (len(best_first) + 1, 1))
    left[1:] -= np.cumsum(np.eye(2 * cap + 1)[best_first], axis=0)  # row k: without the k best
    below = log_superiority(left, cap, delta) < -math.log(alpha)
    return int(below.argmax())


def draw_series(
    voters: Sequence[Voter], *, cap: int, now: float, alpha: float = 0.05, delta: float = 0.0,
    max_users: int | None = None,
) -> tuple[Point, ...]:  # fmt: skip
    """The evidence as users entered, at 200 of them at most: for display, no decision needs it."""
    entered, _ = enter_users(voters, now=now, max_users=max_users)
    if not entered:
        return ()
    running = np.zeros((len(entered) + 1, 2 * cap + 1))
    running[np.arange(1, len(entered) + 1), [user.score + cap for user in entered]] = 1
    running = running.cumsum(axis=0)
    picked = np.unique(np.linspace(1, len(entered), min(len(entered), _MAX_POINTS)).astype(int))
    counts = running[picked]
    low, high = invert_bets(counts, cap, alpha)
    net = counts @ score_values(cap) / picked
    better, worse = log_superiority(counts, cap, delta), log_inferiority(counts, cap)
    columns = np.stack([net, low, high, better, worse], axis=1).tolist()
    return tuple(Point(entered[n - 1].at, int(n), *row) for n, row in zip(picked, columns, strict=True))
