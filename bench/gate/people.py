"""Simulated people who choose between two policies: how often each comes, what each likes, which place draws them.

Made as the duels that a rollout stores, so that everything from there on is the gateway's own code.
"""

from dataclasses import dataclass

import numpy as np

from gateway.rollout.pure.evidence import enter_users
from gateway.rollout.pure.users import Duel, Voter, sum_up

WINDOW_S = 86_400.0
_MOST_DUELS = 60


@dataclass(frozen=True)
class People:
    """How people choose. win: the canary's share of decided duels. Shares and probabilities 0 to 1.

    correlation: of two choices of one user (ICC). heavy: most come once, a few come dozens of times, and quickly.
    first_bias: how much likelier the first place is chosen. failing: of each candidate; a failed one has lost.
    """

    win: float = 0.5
    ties: float = 0.25
    correlation: float = 0.0
    heavy: bool = False
    first_bias: float = 0.0
    failing: float = 0.0
    undecided: float = 0.1


def count_duels(people: People, num_users: int, rng: np.random.Generator) -> np.ndarray:
    """How often each user is asked: (num_users,)."""
    if not people.heavy:
        return np.ones(num_users, dtype=int)
    return np.minimum(1 + rng.pareto(0.8, num_users).astype(int), _MOST_DUELS)


def ask_people(
    people: People, num_users: int, rng: np.random.Generator, *, began_at: float = 0.0, prefix: str = "u"
) -> dict[str, list[Duel]]:
    """The duels of `num_users` users, one new user every second; who is asked often is asked every few seconds."""
    duels: dict[str, list[Duel]] = {}
    shape = (1 / people.correlation - 1) if people.correlation else 0.0  # a + b of the Beta distribution
    for number, num in enumerate(count_duels(people, num_users, rng).tolist()):
        win = rng.beta(shape * people.win, shape * (1 - people.win)) if shape else people.win
        draws = rng.random((num, 6)).tolist()
        at, name = began_at + number, f"{prefix}{number}"
        own = duels[name] = []
        for place, decided, tie, choice, canary_fails, stable_fails in draws:
            at += 3.0
            failed = (stable_fails < people.failing) - (canary_fails < people.failing)
            if failed or min(canary_fails, stable_fails) < people.failing:
                own.append(Duel(name, at, at, failed, failed=True))
                continue
            first = place < 0.5
            likely = win + (people.first_bias if first else -people.first_bias)
            outcome = 0 if tie < people.ties else 1 if choice < likely else -1
            chosen_at = None if decided < people.undecided else at + 1.0
            own.append(Duel(name, at, chosen_at, outcome if chosen_at else 0, canary_first=first))
    return duels


def sum_up_all(duels: dict[str, list[Duel]], cap: int) -> list[Voter]:
    """Every user's duels as the gateway sums them up."""
    return [sum_up(own, cap=cap, window_s=WINDOW_S) for own in duels.values()]


def list_scores(duels: dict[str, list[Duel]], cap: int) -> np.ndarray:
    """Scores of all users in the order in which they enter: (num_users,), from -cap to cap."""
    entered, waiting = enter_users(sum_up_all(duels, cap), now=float("inf"))
    assert waiting == 0
    return np.array([user.score for user in entered])
