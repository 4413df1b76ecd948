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
    if row.actions:
        plain.print(f"may be done now: {', '.join(row.actions)}")
    plain.print(
        f"evidence {evidence.e:.1f} of {evidence.threshold:.0f}, {evidence.users} {evidence.unit}s, "
        f"net wins {evidence.net_win_rate:+.2f} [{evidence.ci_low:+.2f}, {evidence.ci_high:+.2f}]"
    )
    if evidence.fragility:
        plain.print(
            f"fragility: without the {evidence.fragility} {evidence.unit}s that like it most the evidence is short"
        )
    guardrails = Table("guardrail", "status", "seen", "missing", "alarm")
    for guardrail in row.guardrails:
        seen, missing = str(guardrail.seen), str(guardrail.missing or "")
        action = "accepted" if guardrail.waived else guardrail.action.replace("_", " ")
        guardrails.add_row(guardrail.name, guardrail.status, seen, missing, action)
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
    act(connect(gateway, key, state_dir), rollout_id, "abort", {"note": note})


@commands.command("pause")
def pause_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Hold the step and the weight where they are."""
    act(connect(gateway, key, state_dir), rollout_id, "pause", {})


@commands.command("resume")
def resume_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Go on from where the rollout was paused."""
    act(connect(gateway, key, state_dir), rollout_id, "resume", {})


@commands.command("skip")
def skip_step(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Go to the ramp's next step before its time."""
    act(connect(gateway, key, state_dir), rollout_id, "skip", {})


@commands.command("retry")
def retry_rollout(
    rollout_id: Annotated[str, typer.Argument(help="The rollout's id.")],
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Put a rollout's checkpoint on trial again, with the evidence there is."""
    act(connect(gateway, key, state_dir), rollout_id, "retry", {})
    plain.print(f"its checkpoint {QUEUED}")


@commands.command("promote")
def promote_rollout(
    note: Annotated[str, typer.Option(help="Why, in writing: it stays in the audit trail.", prompt=True)],
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Promote past a gate: needs an admin's key."""
    act(connect(gateway, key, state_dir), rollout_id, "promote", {"note": note})


@commands.command("rollback")
def roll_back(
    rollout_id: Annotated[str, typer.Argument(help="A rollout's id; without it, whichever promoted what serves.")] = "",
    note: Annotated[str, typer.Option(help="Why, for the audit trail.")] = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Let the checkpoint that served before serve again, without a trial."""
    client = connect(gateway, key, state_dir)
    if rollout_id:
        act(client, rollout_id, "rollback", {"note": note})
        return
    row = client.ask("POST", "/operator/v1/rollouts:rollback", Rollout, {"note": note})
    plain.print(f"{row.id} {row.phase}")


@commands.command("replay")
def replay_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Make every decision of a rollout again from what it rested on; exit status 1 if one comes out otherwise."""
    client = connect(gateway, key, state_dir)
    found = client.ask("GET", f"/operator/v1/rollouts/{quote_id(find_rollout(client, rollout_id).id)}/replay", Replay)
    for one in found.decisions:
        outcome = "same" if one.is_same else "cannot be made again" if not one.replayed else "OTHERWISE"
        code = "" if one.is_same_code else "  (decided by other code)"
        plain.print(f"{format_time(one.at)}  {one.verdict:<20} {one.digest[:12]}  {outcome}{code}")
    if not found.decisions:
        plain.print("No decision was made.")
    if any(not one.is_same for one in found.decisions):
        raise typer.Exit(1)


def act(client: GatewayClient, rollout_id: str, action: str, body: dict[str, Any]) -> None:
    """Have the gateway do something with a rollout, the active one without an id, and print what came of it."""
    found = rollout_id or find_rollout(client, "").id
    row = client.ask("POST", f"/operator/v1/rollouts/{quote_id(found)}:{action}", Rollout, body)
    plain.print(f"{row.id} {row.phase}")
