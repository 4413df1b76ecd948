"""Rows of the rollout's tables as plain values, for decisions that know nothing of a database."""

from dataclasses import dataclass
from typing import Literal

Answered = Literal["single", "explore", "duel"]  # by one answer, a pair of one arm, or a pair with one of each


@dataclass(frozen=True)
class RolloutRow:
    """One rollout, all of its state. analysis: Pending, Running, Successful, Failed, Error or Inconclusive.

    reason: a code of machine.Reason; note: what an operator wrote of it, which steers nothing. waived: guardrails, by blanks,
    that an operator has accepted. pair: the first rollout of these two checkpoints under these settings, whose evidence this
    one goes on with, as the `num_tries`-th of them.
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
    waived: str
    decision_digest: str
    settings: str
    pair: str
    num_tries: int
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


@dataclass(frozen=True)
class DecisionRow:
    """What a decision came to, as JSON with its SHA-256, and all that it rested on (decisions.py); None of older gateways."""

    verdict: str
    digest: str
    data: str
    inputs: bytes | None


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far the canary's answer to a user was from stable, in nats a token; each user's first of a rollout."""

    rollout: str
    user: str
    at: float
    nats: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened on a user's first request; a duel has one for each arm. None: the sensor saw nothing.

    rollout: its id, and for a late stage its phase after it. latency_first_s: time to the first token; latency_token_s: to each
    further one. length: tokens of the answer as a share of the most it might have.
    """

    rollout: str
    user: str
    arm: str
    answered: Answered
    weight: float
    error: bool
    truncated: bool | None
    refused: bool | None
    latency_first_s: float | None
    at: float
    latency_token_s: float | None = None
    length: float | None = None
