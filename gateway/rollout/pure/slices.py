"""Whether people of one kind prefer stable, while people as a whole may not: evidence by slice (domain, language, task).

A slice is what an app says of a request, such as language=de. A user counts once in each slice in which the user duelled, with those
duels alone. Promises: of a slice in which the canary is no worse, the chance that it is ever said to lose is at most 1 / threshold;
with many slices that adds up. Pure.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from heapq import nsmallest
from itertools import groupby
from operator import attrgetter

import msgspec
import numpy as np

from gateway.rollout.pure.evidence import enter_users, invert_bets, log_inferiority, score_values
from gateway.rollout.pure.guardrails import ACCEPTED, FAIL, NOT_ENOUGH, PASS
from gateway.rollout.pure.users import Duel, Tag, Voter, sum_up


class SliceTally(msgspec.Struct, frozen=True):
    """What the duels of a slice come to. scores: entered users per possible score, from -cap to cap; waiting: the others."""

    name: str
    value: str
    waiting: int
    scores: tuple[int, ...]


class Slice(msgspec.Struct, frozen=True):
    """A slice as it is judged. status: "fail" if its users prefer stable, or "accepted" where that may be, "pass" if they prefer the
    canary, else "not enough data".
    """

    name: str
    value: str
    users: int
    waiting: int
    net: float
    low: float
    high: float
    log_e_inferior: float
    status: str

    @property
    def label(self) -> str:
        """`language=de`."""
        return f"{self.name}={self.value}"


def tally_slices(
    duels: Iterable[Duel], *, cap: int, window_s: float, now: float, max_slices: int
) -> tuple[SliceTally, ...]:
    """The slices with the most users, most first. duels: user by user; users enter in the order of their first duel there."""
    voters: dict[Tag, list[Voter]] = {}
    for _, every in groupby((duel for duel in duels if duel.tags), attrgetter("user")):
        own = list(every)
        parts: dict[Tag, list[Duel]] = {}
        for duel in own:
            for tag in duel.tags:
                parts.setdefault(tag, []).append(duel)
        whole = None  # most users stay in one language and one domain
        for tag, part in parts.items():
            if len(part) == len(own):
                voter = whole = whole or sum_up(own, cap=cap, window_s=window_s)
            else:
                voter = sum_up(part, cap=cap, window_s=window_s)
            voters.setdefault(tag, []).append(voter)
    largest = nsmallest(max_slices, voters, key=lambda tag: (-len(voters[tag]), tag))
    return tuple(_tally(tag, voters[tag], cap, now) for tag in largest)


def _tally(tag: Tag, voters: Sequence[Voter], cap: int, now: float) -> SliceTally:
    entered, waiting = enter_users(voters, now=now)
    scores = np.bincount([user.score + cap for user in entered], minlength=2 * cap + 1)
    return SliceTally(*tag, waiting, tuple(scores.tolist()))


def judge_slices(
    tallies: Sequence[SliceTally], *, cap: int, alpha: float, threshold: float, accepted: Collection[str] = ()
) -> tuple[Slice, ...]:
    """Judge every slice; low and high as of the whole evidence. threshold: E- from which a slice loses.

    accepted: labels of slices that may lose.
    """
    if not tallies:
        return ()
    counts = np.array([tally.scores for tally in tallies], dtype=float)  # (slices, 2 cap + 1)
    users = counts.sum(axis=1)
    nets = counts @ score_values(cap) / np.maximum(users, 1)
    lows, highs = invert_bets(counts, cap, alpha)
    logs = log_inferiority(counts, cap)
    line = math.log(threshold)
    columns = zip(tallies, users.tolist(), nets.tolist(), lows.tolist(), highs.tolist(), logs.tolist(), strict=True)
    found = [
        Slice(
            tally.name, tally.value, int(num), tally.waiting, net, low, high, log_e,
            FAIL if log_e >= line else PASS if low > 0 else NOT_ENOUGH,
        )
        for tally, num, net, low, high, log_e in columns
    ]  # fmt: skip
    return tuple(
        msgspec.structs.replace(one, status=ACCEPTED) if one.status == FAIL and one.label in accepted else one
        for one in found
    )
