"""What operators do to a rollout: each command sends one action of the API and says what came of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prefloop.gateway_client import Checkpoint, GatewayClient, JsonOption, with_gateway
from prefloop.rollouts.records import Rollout, RolloutArgument, find_rollout, find_rollout_id, rollout_path
from prefloop.rollouts.view import render_decision
from prefloop.terminal import CommandFailed, aside, plain, read_answer

QUEUED = "waits for its trial"
NoteOption = Annotated[str, typer.Option(help="Why, for the audit trail.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask: for scripts.")]


@with_gateway
def start_rollout(
    client: GatewayClient,
    aa: Annotated[bool, typer.Option("--aa", help="Put stable's own weights on trial under a new id.")] = False,
    checkpoint: Annotated[str, typer.Option(help="The checkpoint to put on trial.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Put a checkpoint on trial; --aa checks a deployment with stable's own weights."""
    if aa == bool(checkpoint):
        raise CommandFailed("Say either --aa or --checkpoint ID.")
    body = {"aa": True} if aa else {"checkpoint": checkpoint}
    if queued := client.show("POST", "/operator/v1/rollouts", Checkpoint, body, as_json=as_json):
        plain.print(f"{queued.id} {QUEUED}")


@with_gateway
def approve_rollout(
    client: GatewayClient, rollout_id: RolloutArgument = "", yes: YesOption = False, as_json: JsonOption = False
) -> None:
    """Show the decision, ask, and promote what was shown; refused if the decision changed meanwhile."""
    row = find_rollout(client, rollout_id)
    if "approve" in row.actions:  # else the gateway says why not
        _show_decision(row)
        if not yes:
            _ask(f"Approve {row.checkpoint}?")
    seen = {"generation": row.generation, "decision_digest": row.decision_digest}
    act(client, row.id, "approve", seen, as_json=as_json)


@with_gateway
def promote_rollout(
    client: GatewayClient,
    rollout_id: RolloutArgument = "",
    note: Annotated[
        str, typer.Option(help="Why, in writing: it stays in the audit trail.", show_default="you are asked")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Promote past a gate, with a written reason: needs an admin's key."""
    row = find_rollout(client, rollout_id)
    if not note and "promote" in row.actions:
        _show_decision(row)
        note = read_answer("Why it is promoted all the same:")
    act(client, row.id, "promote", {"note": note}, as_json=as_json)


@with_gateway
def abort_rollout(
    client: GatewayClient, rollout_id: RolloutArgument = "", note: NoteOption = "", as_json: JsonOption = False
) -> None:
    """Take the canary out of traffic at once."""
    act(client, rollout_id, "abort", {"note": note}, as_json=as_json)


@with_gateway
def pause_rollout(
    client: GatewayClient, rollout_id: RolloutArgument = "", note: NoteOption = "", as_json: JsonOption = False
) -> None:
    """Hold the step and the weight where they are."""
    act(client, rollout_id, "pause", {"note": note}, as_json=as_json)


@with_gateway
def resume_rollout(client: GatewayClient, rollout_id: RolloutArgument = "", as_json: JsonOption = False) -> None:
    """Go on from where the rollout was paused."""
    act(client, rollout_id, "resume", as_json=as_json)


@with_gateway
def skip_step(client: GatewayClient, rollout_id: RolloutArgument = "", as_json: JsonOption = False) -> None:
    """Go to the ramp's next step before its time."""
    act(client, rollout_id, "skip", as_json=as_json)


@with_gateway
def retry_rollout(
    client: GatewayClient,
    rollout_id: Annotated[str, typer.Argument(help="The rollout's id.")],
    as_json: JsonOption = False,
) -> None:
    """Put a rollout's checkpoint on trial again, with the evidence there is."""
    if row := client.show("POST", rollout_path(rollout_id, ":retry"), Rollout, {}, as_json=as_json):
        plain.print(f"{row.checkpoint} {QUEUED}")


@with_gateway
def roll_back(
    client: GatewayClient,
    rollout_id: Annotated[str, typer.Argument(help="A rollout's id; without it, whichever promoted what serves.")] = "",
    note: NoteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let the checkpoint that served before serve again, without a trial."""
    path = rollout_path(rollout_id, ":rollback") if rollout_id else "/operator/v1/rollouts:rollback"
    _report(client.show("POST", path, Rollout, {"note": note}, as_json=as_json))


def act(
    client: GatewayClient, rollout_id: str, action: str, body: dict[str, Any] | None = None, *, as_json: bool
) -> None:
    """Have the gateway do something with a rollout, the active one without an id, and print what came of it."""
    path = rollout_path(find_rollout_id(client, rollout_id), f":{action}")
    _report(client.show("POST", path, Rollout, body or {}, as_json=as_json))


def _report(row: Rollout | None) -> None:
    if row is not None:
        plain.print(f"{row.id} {row.phase}")


def _show_decision(row: Rollout) -> None:
    """On stderr: what follows on stdout is what came of it."""
    aside.print(render_decision(row))


def _ask(question: str) -> None:
    """Raises CommandFailed unless a person says yes."""
    said = read_answer(f"{question} [y/N]")
    if said.lower() not in ("y", "yes"):
        why = "" if said else ": nobody said yes; in scripts pass --yes"
        raise CommandFailed(f"Nothing was done{why}.")
