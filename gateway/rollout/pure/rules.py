"""How a rollout is judged, as plain values: what of the settings the decisions need. Pure.

Where each is described, and has its default, is RolloutSection in the settings.
"""

from collections.abc import Mapping

import msgspec


class Step(msgspec.Struct, frozen=True):
    """One step of the canary's ramp; `hold_s` None: until a verdict."""

    weight: float
    hold_s: float | None = None


class Shadow(msgspec.Struct, frozen=True):
    """How the canary is looked at before it serves anybody; share 0: it is not."""

    share: float
    min_answers: int
    min_s: float
    max_in_flight: int


class Kl(msgspec.Struct, frozen=True):
    """How the divergence from stable is measured, and what it must be below."""

    share: float
    margin: float
    places: int
    whole: bool
    max_per_s: float
    priority: int
    timeout_s: float


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, weights and rates 0 to 1. ceilings: by guardrail; actions: "roll_back", "pause" or "warn", likewise.
    tripwires: margins by trait.

    evidence_unit: "user" or "comparison". accept_blind: guardrails whose sensor need not have worked. approve_early: operators
    decide on whatever evidence there is, unless a guardrail fails. kl: None of rollouts that were opened before there was that
    guardrail.
    """

    alpha: float
    delta: float
    evidence_unit: str
    cap: int
    window_s: float
    min_users: int
    min_s: float
    max_users: int
    max_s: float
    steps: tuple[Step, ...]
    ceilings: Mapping[str, float]
    actions: Mapping[str, str]
    accept_blind: tuple[str, ...]
    max_ratio: float
    rollback_threshold: float
    sample_ratio_threshold: float
    slice_threshold: float
    max_slices: int
    accept_slices: tuple[str, ...]
    tripwires: Mapping[str, float]
    accept_tripwires: tuple[str, ...]
    harm_screen: str
    shadow: Shadow
    kl: Kl | None
    baking_s: float
    baking_weight: float
    approve_early: bool
    auto_approve: bool
    approve_countdown_s: float

    def list_guardrails(self, action: str) -> list[str]:
        """The guardrails with this action; the split of users is none."""
        return [name for name, chosen in self.actions.items() if chosen == action and name != "split"]
