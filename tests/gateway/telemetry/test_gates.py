"""A rollout's gates as Prometheus shows them: those that no guardrail is."""

import math

import pytest

from gateway.rollout.desired_state import convert_rules
from gateway.rollout.pure.findings import Inputs, weigh
from gateway.rollout.pure.slices import SliceTally
from gateway.rollout.pure.tripwires import LEVELS, TraitTally
from gateway.sections.rollout import RolloutSection
from gateway.telemetry.gates import Gate, list_gates

RULES = convert_rules(RolloutSection())
NO_DATA = "not enough data"


def show(rules: RolloutSection | None = None, **inputs: object) -> dict[str, Gate]:
    chosen = RULES if rules is None else convert_rules(rules)
    found = weigh(chosen, Inputs(0.0, [], [], **inputs))  # type: ignore[arg-type]
    return {gate.name: gate for gate in list_gates(found, chosen)}


def test_without_data_nothing_passes_and_nothing_fails() -> None:
    gates = show()
    states = {name: gate.status for name, gate in gates.items() if gate.status is not None}
    assert states == {
        "superiority": NO_DATA, "inferiority": "pass", "rollback": "pass", "errors": NO_DATA, "truncation": NO_DATA,
        "refusals": NO_DATA, "harm": NO_DATA, "latency": NO_DATA, "token_latency": NO_DATA, "length": NO_DATA,
        "kl": NO_DATA, "split": NO_DATA,
    }  # fmt: skip
    assert "slices" not in gates and not [name for name in gates if name.startswith("tripwire")]


def test_the_worst_slice_is_shown_and_fails_by_its_own_threshold() -> None:
    cap = RULES.cap
    loved, hated = [0] * (2 * cap + 1), [0] * (2 * cap + 1)
    loved[-1], hated[0] = 40, 9  # users who always preferred the canary, and who never did
    english = SliceTally("language", "en", 0, tuple(loved))
    worst = show(slices=(english, SliceTally("language", "de", 0, tuple(hated))))["slices"]
    # each of nine users multiplies E by 1 + l, over eight bets l: 15.0, below 20
    bets = (0.02, 0.04, 0.08, 0.12, 0.2, 0.3, 0.45, 0.6)
    assert worst.log_e == pytest.approx(math.log(sum((1 + bet) ** 9 for bet in bets) / 8))
    assert worst.log_threshold == pytest.approx(math.log(20))
    assert worst.status == "pass"
    hated[0] = 10  # 22.4
    assert show(slices=(english, SliceTally("language", "de", 0, tuple(hated))))["slices"].status == "fail"


def test_a_tripwire_that_trips_fails_until_it_is_accepted() -> None:
    counts = [0] * len(LEVELS)
    counts[-1] = 100  # a hundred users whose canary's answer was longer by all of it
    traits = (TraitTally("length", tuple(counts)),)
    tripped = show(traits=traits)["tripwire_length"]
    assert (tripped.status, tripped.estimate, tripped.seen) == ("fail", 1.0, 100)
    assert (tripped.log_e or 0) >= (tripped.log_threshold or 0) == pytest.approx(math.log(20))
    accepted = show(RolloutSection(accept_tripwires=["length"]), traits=traits)["tripwire_length"]
    assert accepted.status == "pass"


def test_the_rewards_tripwire_has_no_e_value() -> None:
    found = show(reward_gain=0.3)["tripwire_reward"]
    assert (found.status, found.log_e, found.log_threshold) == (NO_DATA, None, None)
