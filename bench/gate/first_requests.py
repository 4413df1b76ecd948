"""Simulated first requests of a rollout, recorded and judged by the gateway's own code, looked at all along.

Every gateway's mix: single answers, duels, and pairs of one arm (explore pairs), which only stable's users get.
"""

from dataclasses import dataclass

import numpy as np

from gateway.rollout.observations import Observations
from gateway.rollout.pure.guardrails import PASS, judge_guardrails

CEILINGS = {"errors": 0.1, "truncation": 0.1, "refusals": 0.05, "harm": 0.01}
_RAMP = ((0.1, 0.05), (0.4, 0.25), (1.0, 0.5))  # until this share of the users, the canary's weight


@dataclass(frozen=True)
class Rates:
    """Chances of an error, by arm."""

    canary: float
    stable: float


def looks_passed(rates: Rates, num_users: int, paired_share: float, rng: np.random.Generator, look_every: int) -> bool:
    """Whether the guardrail on errors ever passes, looking after every `look_every` users."""
    table = Observations(clock=lambda: 1.0)
    observed = []
    for number, (unit, pair, canary, stable) in enumerate(rng.random((num_users, 4)).tolist()):
        weight = next(weight for until, weight in _RAMP if number < until * num_users)
        table.begin("r", weight)
        bad = {"stable": stable < rates.stable, "canary": canary < rates.canary}
        own, user = "canary" if unit < weight else "stable", f"u{number}"
        if pair >= paired_share:
            table.record("r", user, own, bad[own], False, False, None)
        elif own == "canary":
            for arm, is_bad in bad.items():
                table.record("r", user, arm, is_bad, False, False, None, answered="duel")
        else:
            table.record("r", user, "stable", bad["stable"], False, False, None, answered="explore")
        if (number + 1) % look_every == 0:
            observed += table.drain()[0]
            if judge_guardrails(observed, [], ceilings=CEILINGS).rates[0].status == PASS:
                return True
    return False
