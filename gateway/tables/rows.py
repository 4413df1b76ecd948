"""Rows of the rollout's tables as plain values, for decisions that know nothing of a database."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutRow:
    """One rollout, all of its state. `analysis`: Pending, Running, Successful, Failed, Error or Inconclusive."""

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


@dataclass(frozen=True)
class EventRow:
    """One append-only line of a rollout's audit trail."""

    at: float
    from_phase: str
    to_phase: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened on a user's first request. `latency_first_s`: time to the first token, None if there was none."""

    rollout: str
    user: str
    arm: str
    paired: bool
    weight: float
    error: bool
    truncated: bool
    refused: bool
    latency_first_s: float | None
    at: float
