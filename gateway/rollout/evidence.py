"""Decides from duels whether people prefer the canary: e-processes over users, valid however often one looks.

Users enter once, in the order of their first duel, each with (wins - losses) / cap. Promises: with a canary that is no
better, the chance that E ever reaches 1/alpha is at most alpha (Ville). Pure; Waudby-Smith & Ramdas, arXiv 2010.09686.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BETS = np.array([0.02, 0.04, 0.08, 0.12, 0.2, 0.3, 0.45, 0.6])
FUTILITY_MARGIN = 0.10
_MAX_POINTS = 200

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Duel:
    """One duel from the canary's side: outcome +1, 0 or -1. `chosen_at` None: shown and not decided (yet)."""

    user: str
    asked_at: float
    chosen_at: float | None
    outcome: int
    both_bad: bool = False
    harmful_canary: bool = False
    harmful_stable: bool = False
    canary_first: bool = False


@dataclass(frozen=True)
class EnteredUser:
    """A user who is complete: `score` = wins - losses over the first `cap` decided duels, entered at `at`."""

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
    """Logarithms of e-values, the net win rate with its 90% interval, and what was counted."""

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
    series: tuple[Point, ...]


def enter_users(duels: Iterable[Duel], *, cap: int, window_s: float, now: float) -> tuple[list[EnteredUser], int]:
    """Replay duels into entered users, in order of first duel; returns them and how many still wait.

    A user is complete when `cap` duels are decided, or `window_s` has passed since the first was asked. One who is
    complete early waits for all before: entering by completion lets heavy users in first.
    """
    by_user: dict[str, list[Duel]] = {}
    for duel in duels:
        by_user.setdefault(duel.user, []).append(duel)
    first_asked = {user: min(duel.asked_at for duel in own) for user, own in by_user.items()}
    order = sorted(by_user, key=lambda user: (first_asked[user], user))
    entered: list[EnteredUser] = []
    at = -math.inf
    for user in order:
        closes_at = first_asked[user] + window_s
        counted = _counted(by_user[user], cap, closes_at)
        full = len(counted) == cap
        complete_at = max(_chosen_at(duel) for duel in counted) if full else closes_at
        if complete_at > now:
            break
        at = max(at, complete_at)
        entered.append(EnteredUser(user, sum(duel.outcome for duel in counted), at))
    return entered, len(order) - len(entered)


def _counted(own: Sequence[Duel], cap: int, closes_at: float) -> list[Duel]:
    decided = [duel for duel in own if duel.chosen_at is not None and duel.chosen_at <= closes_at]
    return sorted(decided, key=lambda duel: (_chosen_at(duel), duel.asked_at))[:cap]


def _chosen_at(duel: Duel) -> float:
    assert duel.chosen_at is not None
    return duel.chosen_at


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


def weigh_duels(
    duels: Sequence[Duel], *, cap: int, window_s: float, now: float, alpha: float = 0.05, delta: float = 0.0,
    max_users: int | None = None,
) -> Evidence:  # fmt: skip
    """Weigh all duels of a rollout as of `now`. Invariant to the order in which duels are given."""
    entered, waiting = enter_users(duels, cap=cap, window_s=window_s, now=now)
    if max_users is not None and len(entered) > max_users:
        waiting += len(entered) - max_users
        entered = entered[:max_users]
    running = np.zeros((len(entered) + 1, 2 * cap + 1))
    for row, user in enumerate(entered):
        running[row + 1, user.score + cap] = 1
    running = running.cumsum(axis=0)
    total = running[-1]
    decided = [duel for duel in duels if duel.chosen_at is not None]
    votes_of: dict[str, int] = {}
    for duel in decided:
        votes_of[duel.user] = votes_of.get(duel.user, 0) + 1
    low, high = invert_bets(total[None, :], cap, alpha)
    return Evidence(
        log_e=float(log_superiority(total, cap, delta)),
        log_e_inferior=float(log_inferiority(total, cap)),
        log_e_futile=float(log_futility(total, cap)),
        users=len(entered),
        waiting=waiting,
        votes=len(decided),
        wins=sum(duel.outcome > 0 for duel in decided),
        losses=sum(duel.outcome < 0 for duel in decided),
        ties=sum(duel.outcome == 0 and not duel.both_bad for duel in decided),
        both_bad=sum(duel.both_bad for duel in decided),
        net=float(total @ score_values(cap)) / len(entered) if entered else 0.0,
        low=float(low[0]),
        high=float(high[0]),
        top_user_share=max(votes_of.values(), default=0) / max(1, len(decided)),
        series=_draw_series(entered, running, cap, alpha, delta),
    )


def _draw_series(
    entered: Sequence[EnteredUser], running: FloatArray, cap: int, alpha: float, delta: float
) -> tuple[Point, ...]:
    if not entered:
        return ()
    picked = np.unique(np.linspace(1, len(entered), min(len(entered), _MAX_POINTS)).astype(int))
    counts = running[picked]
    low, high = invert_bets(counts, cap, alpha)
    net = counts @ score_values(cap) / picked
    better, worse = log_superiority(counts, cap, delta), log_inferiority(counts, cap)
    columns = np.stack([net, low, high, better, worse], axis=1).tolist()
    return tuple(Point(entered[n - 1].at, int(n), *row) for n, row in zip(picked, columns, strict=True))
