"""What the rollout commands read of the gateway's answers, and the rollout that they are about."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from prefloop.gateway_client import GatewayClient, quote_id
from prefloop.terminal import CommandFailed

RolloutArgument = Annotated[str, typer.Argument(help="A rollout's id; without it, the active one.")]


class Evidence(msgspec.Struct, frozen=True):
    """Preference evidence of a rollout. unit: what `users` counts, "user" or "comparison"."""

    users: int
    e: float
    threshold: float
    net_win_rate: float
    ci_low: float
    ci_high: float
    unit: str = "user"
    fragility: int = 0
    min_users: int = 0
    waiting: int = 0


class Guardrail(msgspec.Struct, frozen=True):
    """One guardrail; missing: clean users that would make it pass; seen: answers that its sensor saw; action: of its alarm."""

    name: str
    status: str
    missing: int | None = None
    seen: int = 0
    action: str = ""
    waived: bool = False


class AuditEvent(msgspec.Struct, frozen=True, rename={"from_phase": "from", "to_phase": "to"}):
    """One line of a rollout's audit trail. `reason` is a code, `note` what an operator wrote."""

    at: float
    from_phase: str
    to_phase: str
    actor: str
    reason: str = ""
    note: str = ""


class Rollout(msgspec.Struct, frozen=True):
    """A rollout as its operators see it. `weight_of`: whom `weight` is the share of; `actions`: what may be done now."""

    id: str
    checkpoint: str
    stable: str
    aa: bool
    phase: str
    step: int
    num_steps: int
    weight: float
    generation: int
    decision_digest: str
    created_at: float
    verdict_sentence: str
    evidence: Evidence
    guardrails: list[Guardrail]
    events: list[AuditEvent]
    weight_of: str
    actions: list[str] = []
    reason: str = ""
    reason_text: str = ""
    note: str = ""
    next_move_at: float | None = None
    approve_at: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has finished."""
        return self.phase in ("Healthy", "Degraded")


class RolloutList(msgspec.Struct, frozen=True):
    """The newest rollouts."""

    data: list[Rollout]


class ActiveRollout(msgspec.Struct, frozen=True):
    """What a status says of the rollout that is on."""

    rollout: Rollout | None


class Decision(msgspec.Struct, frozen=True):
    """A decision, and whether it comes out the same when it is made again."""

    at: float
    verdict: str
    digest: str
    replayed: str
    is_same: bool
    is_same_code: bool


class Replay(msgspec.Struct, frozen=True):
    """Every decision of a rollout."""

    decisions: list[Decision]


def rollout_path(rollout_id: str, rest: str = "") -> str:
    """The API's path of a rollout."""
    return f"/operator/v1/rollouts/{quote_id(rollout_id)}{rest}"


def find_rollout(client: GatewayClient, rollout_id: str) -> Rollout:
    """The rollout of this id, else the active one. Raises CommandFailed if there is none."""
    if rollout_id:
        return client.ask("GET", rollout_path(rollout_id), Rollout)
    found = client.ask("GET", "/operator/v1/status", ActiveRollout).rollout
    if found is None:
        raise CommandFailed("No rollout is active: `prefloop rollout list` shows past ones, `show ID` one of them.")
    return found


def find_rollout_id(client: GatewayClient, rollout_id: str) -> str:
    """This id, else the active rollout's."""
    return rollout_id or find_rollout(client, "").id
