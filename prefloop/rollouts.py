"""`prefloop rollout`: starts, shows, approves and ends rollouts, as a client of the gateway's HTTP API."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from prefloop.gateway_client import (
    DEFAULT_GATEWAY,
    Checkpoint,
    GatewayClient,
    GatewayOption,
    JsonOption,
    KeyOption,
    Rollout,
    StateOption,
    connect,
    quote_id,
)
from prefloop.terminal import fail, format_time, plain

commands = typer.Typer(help="Start, watch, approve and abort rollouts.", no_args_is_help=True)

QUEUED = "waits for its trial"
RolloutArgument = Annotated[str, typer.Argument(help="A rollout's id; without it, the active one.")]


class RolloutList(msgspec.Struct, frozen=True):
    """The newest rollouts."""

    data: list[Rollout]


class ActiveRollout(msgspec.Struct, frozen=True):
    """What a status says of the rollout that is on."""

    rollout: Rollout | None


class Moved(msgspec.Struct, frozen=True):
    """What a rollback answers: a rollout with its phase, or the checkpoint whose trial has yet to begin."""

    id: str
    phase: str = QUEUED


def find_rollout(client: GatewayClient, rollout_id: str) -> Rollout:
    """The rollout of this id, else the active one."""
    if rollout_id:
        return client.ask("GET", f"/operator/v1/rollouts/{quote_id(rollout_id)}", Rollout)
    found = client.ask("GET", "/operator/v1/status", ActiveRollout).rollout
    if found is None:
        raise fail("No rollout is active.")
    return found


@commands.command("list")
def list_rollouts(gateway: GatewayOption = DEFAULT_GATEWAY, key: KeyOption = "", state_dir: StateOption = None) -> None:
    """List rollouts, the newest first."""
    table = Table("id", "checkpoint", "phase", "reason", "weight", "users", "evidence", "started")
    for row in connect(gateway, key, state_dir).ask("GET", "/operator/v1/rollouts", RolloutList).data:
        table.add_row(
            row.id,
            row.checkpoint + (" (A/A)" if row.aa else ""),
            row.phase,
            row.reason + (f": {row.note}" if row.note else ""),
            f"{row.weight:.0%}",
            str(row.evidence.users),
            f"{row.evidence.e:.1f} of {row.evidence.threshold:.0f}",
            format_time(row.created_at),
        )
    plain.print(table)


@commands.command("show")
def show_rollout(
    rollout_id: RolloutArgument = "",
    as_json: JsonOption = False,
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Show one rollout: verdict, evidence, guardrails, audit trail."""
    client = connect(gateway, key, state_dir)
    row = find_rollout(client, rollout_id)
    if as_json:
        whole = client.send("GET", f"/operator/v1/rollouts/{quote_id(row.id)}")
        typer.echo(msgspec.json.format(whole, indent=2))
        return
    evidence = row.evidence
    plain.print(f"{row.id}  {row.checkpoint} against {row.stable}")
    plain.print(f"{row.phase}  {row.weight_of} weight {row.weight:.0%}  step {row.step + 1} of {row.num_steps}")
    plain.print(row.verdict_sentence)
    plain.print(
        f"evidence {evidence.e:.1f} of {evidence.threshold:.0f}, {evidence.users} {evidence.unit}s, "
        f"net wins {evidence.net_win_rate:+.2f} [{evidence.ci_low:+.2f}, {evidence.ci_high:+.2f}]"
    )
    guardrails = Table("guardrail", "status", "missing")
    for guardrail in row.guardrails:
        guardrails.add_row(guardrail.name, guardrail.status, str(guardrail.missing or ""))
    plain.print(guardrails)
    trail = Table("at", "from", "to", "who", "reason", "note")
    for event in row.events:
        trail.add_row(format_time(event.at), event.from_phase, event.to_phase, event.actor, event.reason, event.note)
    plain.print(trail)


@commands.command("start")
def start_rollout(
    aa: Annotated[bool, typer.Option("--aa", help="Put stable's own weights on trial under a new id.")] = False,
    checkpoint: Annotated[str, typer.Option(help="The checkpoint to put on trial.")] = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Put a checkpoint on trial; --aa checks a deployment with stable's own weights."""
    if aa == bool(checkpoint):
        raise fail("Say either --aa or --checkpoint ID.")
    body = {"aa": True} if aa else {"checkpoint": checkpoint}
    queued = connect(gateway, key, state_dir).ask("POST", "/operator/v1/rollouts", Checkpoint, body)
    plain.print(f"{queued.id} {QUEUED}")


@commands.command("approve")
def approve_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Approve what is shown now; refused if the decision changed meanwhile."""
    client = connect(gateway, key, state_dir)
    row = find_rollout(client, rollout_id)
    plain.print(row.verdict_sentence)
    act(client, row.id, "approve", {"generation": row.generation, "decision_digest": row.decision_digest})


@commands.command("abort")
def abort_rollout(
    rollout_id: RolloutArgument = "",
    note: Annotated[str, typer.Option(help="Why, for the audit trail.")] = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Take the canary out of traffic at once."""
    client = connect(gateway, key, state_dir)
    act(client, find_rollout(client, rollout_id).id, "abort", {"note": note})


@commands.command("pause")
def pause_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Hold the step and the weight where they are."""
    client = connect(gateway, key, state_dir)
    act(client, find_rollout(client, rollout_id).id, "pause", {})


@commands.command("resume")
def resume_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Go on from where the rollout was paused."""
    client = connect(gateway, key, state_dir)
    act(client, find_rollout(client, rollout_id).id, "resume", {})


@commands.command("rollback")
def roll_back(gateway: GatewayOption = DEFAULT_GATEWAY, key: KeyOption = "", state_dir: StateOption = None) -> None:
    """Go back to the checkpoint that served before."""
    moved = connect(gateway, key, state_dir).ask("POST", "/operator/v1/rollouts:rollback", Moved, {})
    plain.print(f"{moved.id} {moved.phase}")


def act(client: GatewayClient, rollout_id: str, action: str, body: dict[str, Any]) -> None:
    """Have the gateway do something with a rollout, and print what came of it."""
    row = client.ask("POST", f"/operator/v1/rollouts/{quote_id(rollout_id)}:{action}", Rollout, body)
    plain.print(f"{row.id} {row.phase}")
