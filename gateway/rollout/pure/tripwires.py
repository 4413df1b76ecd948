"""What people may like about the canary that is no merit: longer answers, flattery, refusals, questions in return. Pure.

A preference alone never promotes. Of each user's first duel the canary's answer is compared with stable's; a tripwire trips when the
mean difference is proven to be above its margin, and then forbids a promotion until it is accepted. A canary at the margin trips with
a chance of at most alpha, however often one looks. "reward" is no test: it trips while the reward model foresaw a gain and people,
`min_users` of them at least, prefer stable.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

import msgspec
import numpy as np

from gateway.rollout.pure.evidence import Evidence
from gateway.rollout.pure.guardrails import ACCEPTED, NOT_ENOUGH
from gateway.rollout.pure.rates import log_above_e
from gateway.rollout.pure.users import Duel

TRIPPED, QUIET = "tripped", "quiet"
REWARD = "reward"
_STEPS = 20  # differences are counted by twentieths
LEVELS = np.arange(-_STEPS, _STEPS + 1) / _STEPS


class TraitTally(msgspec.Struct, frozen=True):
    """counts: users by the difference in their first duel, from -1 to 1 by twentieths."""

    name: str
    counts: tuple[int, ...]


class Tripwire(msgspec.Struct, frozen=True):
    """difference: the mean over `users`, the canary's less stable's; of "reward" people's net win rate, and gain what was foreseen."""

    name: str
    status: str
    difference: float
    margin: float
    users: int
    log_e: float
    gain: float | None = None


def tally_traits(duels: Iterable[Duel]) -> tuple[TraitTally, ...]:
    """Each user's first duel of which the answers were compared. duels: user by user, each one's in the order asked."""
    counts: dict[str, list[int]] = {}
    for _, own in groupby((duel for duel in duels if duel.differences), attrgetter("user")):
        for name, value in next(own).differences:
            counts.setdefault(name, [0] * len(LEVELS))[round((value + 1) * _STEPS)] += 1
    return tuple(TraitTally(name, tuple(counts[name])) for name in sorted(counts))


def judge_tripwires(
    tallies: Sequence[TraitTally], evidence: Evidence, *, margins: Mapping[str, float], accepted: Collection[str],
    alpha: float, min_users: int, reward_gain: float | None,
) -> tuple[Tripwire, ...]:  # fmt: skip
    """Judge every tripwire of which anything is known. margins: by trait; reward_gain: of the checkpoint's manifest, None without."""
    found = [_judge(tally, margins[tally.name], alpha) for tally in tallies if tally.name in margins]
    if reward_gain is not None:
        has_tripped = reward_gain > 0 and evidence.users >= min_users and evidence.net < 0
        status = TRIPPED if has_tripped else QUIET if evidence.users >= min_users else NOT_ENOUGH
        found.append(
            Tripwire(REWARD, status, evidence.net, 0.0, evidence.users, evidence.log_e_inferior, gain=reward_gain)
        )
    return tuple(
        msgspec.structs.replace(one, status=ACCEPTED) if one.status == TRIPPED and one.name in accepted else one
        for one in found
    )


def _judge(tally: TraitTally, margin: float, alpha: float) -> Tripwire:
    counts = np.array(tally.counts, dtype=float)
    users = int(counts.sum())
    log_e = log_above_e(LEVELS, counts, margin)
    status = TRIPPED if log_e >= -math.log(alpha) else QUIET if users else NOT_ENOUGH
    return Tripwire(tally.name, status, float(counts @ LEVELS) / max(1, users), margin, users, log_e)


def say_tripwire(one: Tripwire) -> str:
    """What has tripped, in words."""
    if one.name == REWARD:
        return (
            f"the reward model foresaw a gain ({one.gain or 0.0:+.2f}) and people prefer stable ({one.difference:+.0%})"
        )
    points = f"{100 * one.difference:+.0f} points, over {one.users} users"
    return {
        "length": f"its answers are longer ({one.difference:+.0%} of the longer one, over {one.users} users)",
        "flattery": f"more of its answers flatter ({points})",
        "refusals": f"more of its answers refuse ({points})",
        "questions": f"more of its answers ask back ({points})",
    }[one.name]
