"""Who is killed how often, and at which moment of its life. Pure: the same seed plans the same lives.

A life ends at a random moment, while the process is still starting, after a round, or at a commit boundary by the
process's own hand (feedback.faults). What another process's end does to it meanwhile is chance, not plan.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Moment = Literal["running", "starting", "round"]

SHARES = {"gateway": 0.24, "engine": 0.24, "trainer": 0.22, "broker": 0.15, "postgresql": 0.15}
SECONDS_A_KILL = 7.5  # of the whole run
_RECOVERY_S = {
    "gateway": 5.0,
    "engine": 3.0,
    "trainer": 18.0,
    "broker": 10.0,
    "postgresql": 3.0,
}  # as seen on two cores
_STARTING_S = {"gateway": 3.0, "engine": 1.0, "trainer": 12.0, "broker": 6.0, "postgresql": 1.0}
_MIN_LIFE_S = 1.0
_MAX_WAIT_S = 120.0  # for a round, or for a boundary that is seldom come to
# The moments of each process's lives, drawn in another order every time through.
_CYCLES: Mapping[str, Sequence[tuple[Moment, str]]] = {
    "gateway": [
        ("running", ""),
        ("running", "choice.committed"),
        ("running", ""),
        ("running", "relay.appended"),
        ("starting", ""),
    ],
    "engine": [("running", "")],
    "trainer": [
        ("running", ""),
        ("running", "consumer.read"),
        ("running", "consumer.committed"),
        ("running", "reward.saved"),
        ("running", "round.prepared"),
        ("running", "round.step"),
        ("running", "round.trained"),
        ("running", "round.judged"),
        ("running", "round.published"),
        ("round", ""),
        ("starting", ""),
    ],
    "broker": [("running", ""), ("running", ""), ("running", ""), ("starting", "")],
    "postgresql": [("running", "")],
}
# The run trains by DPO on people's choices alone, and keeps checkpoints in a directory; tests kill at these.
ELSEWHERE = frozenset({"round.labelled", "ppo.sampled", "ppo.measured", "ppo.learnt", "store.blob", "store.blobs"})
# A boundary that is come to several times a second is passed a few seconds long first.
CHANCES = {
    "choice.committed": 0.02,
    "relay.appended": 0.04,
    "consumer.read": 0.05,
    "consumer.committed": 0.05,
    "reward.saved": 0.3,
    "round.prepared": 1.0,
    "round.step": 0.1,
    "round.trained": 1.0,
    "round.judged": 1.0,
    "round.published": 1.0,
}


@dataclass(frozen=True)
class Life:
    """How one life of a process ends: after_s after it is up, or after it was started ("starting").

    "round": soon after a round has ended, after_s at the latest. fault: the boundary at which it is to end by itself;
    if it has not by after_s, it is killed from outside.
    """

    moment: Moment
    after_s: float
    fault: str = ""


def share_kills(num_kills: int, names: Sequence[str]) -> dict[str, int]:
    """How many kills each process gets; they add up to num_kills."""
    total = sum(SHARES[name] for name in names)
    kills = {name: int(num_kills * SHARES[name] / total) for name in names}
    for name in itertools.cycle(names):
        if sum(kills.values()) == num_kills:
            return kills
        kills[name] += 1
    return kills


def plan_lives(name: str, num_kills: int, run_s: float, seed: int) -> Iterator[Life]:
    """The lives of a process that is to die num_kills times within about run_s seconds."""
    rng = random.Random(f"{seed}-{name}")
    mean_s = max(_MIN_LIFE_S, run_s / num_kills - _RECOVERY_S[name])
    cycle: list[tuple[Moment, str]] = []
    yield Life("running", rng.uniform(0.0, 2 * mean_s))  # it runs already, with no boundary armed
    for _ in range(num_kills - 1):
        if not cycle:
            cycle = rng.sample(_CYCLES[name], len(_CYCLES[name]))
        moment, fault = cycle.pop()
        if moment == "starting":
            yield Life(moment, rng.uniform(0.0, _STARTING_S[name]))
        elif moment == "round" or fault:
            yield Life(moment, _MAX_WAIT_S, fault)
        else:
            yield Life(moment, rng.uniform(0.0, 2 * mean_s))
