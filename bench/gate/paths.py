"""Where e-values first reach their line when somebody looks after every user: exactly for single duels, else by simulation.

Evidence is the gateway's own `log_superiority` and `log_inferiority`; nothing here restates them.
"""

import math

import numpy as np
import numpy.typing as npt

from gateway.rollout.pure.evidence import log_inferiority, log_superiority

NEVER = 10**9
Ints = npt.NDArray[np.int64]
_LINE = math.log(20)


def find_crossings(scores: Ints, cap: int, *, line: float = _LINE) -> tuple[int, int]:
    """At which user E+ and E- first reach the line; scores: (users,) in order of entering. NEVER if they do not."""
    running = np.zeros((len(scores), 2 * cap + 1))
    running[np.arange(len(scores)), scores + cap] = 1
    running = running.cumsum(axis=0)
    return _first(log_superiority(running, cap) >= line), _first(log_inferiority(running, cap) >= line)


def _first(reached: npt.NDArray[np.bool_]) -> int:
    return int(reached.argmax()) + 1 if reached.any() else NEVER


def find_all_crossings(scores: Ints, cap: int, *, line: float = _LINE) -> tuple[Ints, Ints]:
    """The same for many rollouts at once; scores: (rollouts, users). Returns (rollouts,), (rollouts,)."""
    num, users = scores.shape
    counts, rows = np.zeros((num, 2 * cap + 1)), np.arange(num)
    better, worse = np.full(num, NEVER), np.full(num, NEVER)
    for n in range(users):
        counts[rows, scores[:, n] + cap] += 1
        better = np.where((better == NEVER) & (log_superiority(counts, cap) >= line), n + 1, better)
        worse = np.where((worse == NEVER) & (log_inferiority(counts, cap) >= line), n + 1, worse)
    return better, worse


def compute_ever_crossed(win: float, users: int) -> npt.NDArray[np.float64]:
    """Exact P(E+ has reached 20 by user n), one duel a user, no ties: (users,), by recursion over the number of wins."""
    alive, gone, out = np.array([1.0]), 0.0, np.empty(users)
    for n in range(1, users + 1):
        alive = np.concatenate([alive * (1 - win), [0.0]]) + np.concatenate([[0.0], alive * win])
        wins = np.arange(n + 1)
        over = log_superiority(np.stack([n - wins, 0 * wins, wins], axis=1).astype(float), 1) >= _LINE
        gone += alive[over].sum()
        alive[over] = 0.0
        out[n - 1] = gone
    return out


def find_power(crossed: npt.NDArray[np.float64], power: float = 0.8) -> int:
    """Users until the chance of having crossed is `power`. Raises ValueError if it is not within these users."""
    if crossed[-1] < power:
        raise ValueError(f"{crossed[-1]:.2f} within {len(crossed)} users")
    return int(np.argmax(crossed >= power)) + 1


def find_simulated_power(crossings: Ints, power: float = 0.8) -> int:
    """Users until this share of simulated rollouts has crossed."""
    return int(np.sort(crossings)[math.ceil(power * len(crossings)) - 1])


def estimate_error(crossings: Ints, rng: np.random.Generator, power: float = 0.8) -> float:
    """Two standard errors of `find_simulated_power`, by drawing the rollouts again a hundred times."""
    again = [find_simulated_power(rng.choice(crossings, len(crossings)), power) for _ in range(100)]
    return 2 * float(np.std(again))


def draw_scores(
    win: float, duels: int, rollouts: int, users: int, rng: np.random.Generator, *,
    ties: float = 0.0, correlation: float = 0.0,
) -> Ints:  # fmt: skip
    """Scores of users who duel `duels` times each: (rollouts, users)."""
    taste: npt.NDArray[np.float64] | float = win
    if correlation:
        shape = 1 / correlation - 1
        taste = rng.beta(shape * win, shape * (1 - win), size=(rollouts, users))
    decided = rng.binomial(duels, 1 - ties, size=(rollouts, users))
    return np.asarray(2 * rng.binomial(decided, taste) - decided)


def count_peeking(rollouts: int, votes: int, rng: np.random.Generator) -> float:
    """What looking at every vote does to a plain z-test at 5%: the share of equal canaries that it calls better or worse."""
    walk = (2 * rng.integers(0, 2, size=(rollouts, votes)) - 1).cumsum(axis=1)
    n = np.arange(1, votes + 1)
    return float((np.abs(walk[:, 30:]) >= 1.96 * np.sqrt(n[30:])).any(axis=1).mean())
