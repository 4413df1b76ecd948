"""Rows of the rollout's tables as plain values, for decisions that know nothing of a database."""

from dataclasses import dataclass
from typing import Literal

Answered = Literal["single", "explore", "duel"]  # by one answer, a pair of one arm, or a pair with one of each


@dataclass(frozen=True)
class RolloutRow:
    """One rollout, all of its state. analysis: Pending, Running, Successful, Failed, Error or Inconclusive.

    reason: a code of machine.Reason; note: what an operator wrote of it, which steers nothing.
    """

    id: str
    policy: str
    checkpoint: str
    stable: str
    aa: bool
    phase: str
    analysis: str
    reason: str
    step: int
    step_started_at: float
    weight: float
    duel_share: float
    salt: str
    generation: int
    created_at: float
    started_at: float | None
    phase_started_at: float
    finished_at: float | None
    resume_phase: str
    split_waived: bool
    decision_digest: str
    settings: str
    note: str = ""


@dataclass(frozen=True)
class EventRow:
    """One append-only line of a rollout's audit trail."""

    at: float
    from_phase: str
    to_phase: str
    actor: str
    reason: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened on a user's first request; a duel has one for each arm.

    latency_first_s: time to the first token, None if there was none.
    """

    rollout: str
    user: str
    arm: str
    answered: Answered
    weight: float
    error: bool
    truncated: bool
    refused: bool
    latency_first_s: float | None
    at: float
