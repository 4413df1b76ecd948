"""What an operator sees of a rollout: the same names in the API, the console and the command line."""

from typing import Any

import msgspec


class EvidenceView(msgspec.Struct, frozen=True, kw_only=True):
    """Preference evidence. E-values, not logarithms; `net_win_rate` is the mean of (wins - losses) / cap over users."""

    e: float
    threshold: float
    e_inferior: float
    users: int
    min_users: int
    max_users: int
    votes: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    net_win_rate: float
    ci_low: float
    ci_high: float
    top_user_share: float


class GuardrailView(msgspec.Struct, frozen=True, kw_only=True):
    """One guardrail. `status`: "pass", "fail" or "not enough data"; `missing`: clean users that would make it pass."""

    name: str
    status: str
    e: float
    threshold: float
    canary: float | None
    stable: float | None
    missing: int


class SeriesPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence as it stood when `users` had entered, at `at` (epoch seconds)."""

    at: float
    users: int
    net: float
    low: float
    high: float
    e: float
    e_inferior: float


class EventView(msgspec.Struct, frozen=True, kw_only=True, rename={"from_phase": "from", "to_phase": "to"}):
    """One line of the audit trail."""

    at: float
    from_phase: str
    to_phase: str
    actor: str
    reason: str


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout with its evidence, guardrails, series and audit trail. Times in epoch seconds."""

    id: str
    checkpoint: str
    stable: str
    aa: bool
    phase: str
    analysis: str
    reason: str
    step: int
    num_steps: int
    weight: float
    duel_share: float
    generation: int
    decision_digest: str
    created_at: float
    finished_at: float | None
    next_move_at: float | None
    approve_at: float | None
    preset: str
    verdict_sentence: str
    evidence: EvidenceView
    guardrails: list[GuardrailView]
    series: list[SeriesPoint]
    events: list[EventView]


def to_plain(view: RolloutView) -> dict[str, Any]:
    """Return the view as JSON-ready built-ins."""
    plain: dict[str, Any] = msgspec.to_builtins(view)
    return plain
