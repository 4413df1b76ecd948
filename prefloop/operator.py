"""The operator's side of the command line: rollouts and status. keys.py has the keys.

A client of the gateway's HTTP API and nothing more.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

console = Console()
rollout = typer.Typer(help="Start, watch, approve and abort rollouts.", no_args_is_help=True)

GatewayOption = Annotated[str, typer.Option("--gateway", envvar="PREFLOOP_GATEWAY_URL", help="The gateway's address.")]
KeyOption = Annotated[
    str,
    typer.Option("--key", envvar="PREFLOOP_KEY", help="An operator or admin key.", show_default="the local admin key"),
]
StateOption = Annotated[Path, typer.Option("--state-dir", envvar="PREFLOOP_STATE_DIR", help="The state directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_GATEWAY = "http://127.0.0.1:8800"
DEFAULT_STATE = Path("state")


def read_admin_key(state_dir: Path) -> str:
    """The admin key that the gateway's first start wrote, or "" before it."""
    path = state_dir / "secrets" / "admin_key"
    return path.read_text().strip() if path.exists() else ""


def fail(message: str) -> typer.Exit:
    Console(stderr=True).print(f"[red]{message}[/red]", highlight=False)
    return typer.Exit(1)


def call(gateway: str, key: str, state_dir: Path, method: str, path: str, body: Any = None) -> Any:
    """One request to the gateway; leaves with its own words when it refuses."""
    key = key or read_admin_key(state_dir)
    if not key:
        raise fail(f"No key: pass --key or PREFLOOP_KEY, or point --state-dir at the gateway's ({state_dir} has none).")
    try:
        response = httpx.request(
            method, gateway + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30
        )
    except httpx.TransportError as error:
        raise fail(f"No gateway answers at {gateway} ({error}). Is `prefloop up` running?") from None
    if response.is_error:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:300]
        raise fail(f"{response.status_code}: {message}")
    return response.json() if response.content else None


def format_time(epoch_s: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_s)) if epoch_s else ""


def current_rollout(gateway: str, key: str, state_dir: Path, rollout_id: str) -> dict[str, Any]:
    if rollout_id:
        return dict(call(gateway, key, state_dir, "GET", f"/operator/v1/rollouts/{rollout_id}"))
    view = call(gateway, key, state_dir, "GET", "/operator/v1/status")["rollout"]
    if view is None:
        raise fail("No rollout is active.")
    return dict(view)


@rollout.command("list")
def list_rollouts(
    gateway: GatewayOption = DEFAULT_GATEWAY, key: KeyOption = "", state_dir: StateOption = DEFAULT_STATE
) -> None:
    """List rollouts, the newest first."""
    table = Table("id", "checkpoint", "phase", "reason", "weight", "users", "evidence", "started")
    for view in call(gateway, key, state_dir, "GET", "/operator/v1/rollouts")["data"]:
        evidence = view["evidence"]
        table.add_row(
            view["id"],
            view["checkpoint"] + (" (A/A)" if view["aa"] else ""),
            view["phase"],
            view["reason"] + (f": {view['note']}" if view["note"] else ""),
            f"{view['weight']:.0%}",
            str(evidence["users"]),
            f"{evidence['e']:.1f} of {evidence['threshold']:.0f}",
            format_time(view["created_at"]),
        )
    console.print(table)


@rollout.command("show")
def show_rollout(
    rollout_id: Annotated[str, typer.Argument(help="A rollout's id; without it, the active one.")] = "",
    as_json: JsonOption = False,
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Show one rollout: verdict, evidence, guardrails, audit trail."""
    view = current_rollout(gateway, key, state_dir, rollout_id)
    if as_json:
        typer.echo(json.dumps(view, indent=2))
        return
    evidence = view["evidence"]
    console.print(f"[bold]{view['id']}[/bold]  {view['checkpoint']} against {view['stable']}", highlight=False)
    console.print(
        f"{view['phase']}  {view['weight_of']} weight {view['weight']:.0%}  step {view['step'] + 1} of {view['num_steps']}"
    )
    console.print(view["verdict_sentence"])
    console.print(
        f"evidence {evidence['e']:.1f} of {evidence['threshold']:.0f}, {evidence['users']} users, "
        f"net wins {evidence['net_win_rate']:+.2f} [{evidence['ci_low']:+.2f}, {evidence['ci_high']:+.2f}]"
    )
    guardrails = Table("guardrail", "status", "missing")
    for row in view["guardrails"]:
        guardrails.add_row(row["name"], row["status"], str(row["missing"] or ""))
    console.print(guardrails)
    trail = Table("at", "from", "to", "who", "reason", "note")
    for event in view["events"]:
        trail.add_row(
            format_time(event["at"]), event["from"], event["to"], event["actor"], event["reason"], event["note"]
        )
    console.print(trail)


@rollout.command("start")
def start_rollout(
    aa: Annotated[bool, typer.Option("--aa", help="Put stable's own weights on trial under a new id.")] = False,
    checkpoint: Annotated[str, typer.Option(help="The checkpoint to put on trial.")] = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Put a checkpoint on trial; --aa checks a deployment with stable's own weights."""
    if aa == bool(checkpoint):
        raise fail("Say either --aa or --checkpoint ID.")
    body = {"aa": True} if aa else {"checkpoint": checkpoint}
    view = call(gateway, key, state_dir, "POST", "/operator/v1/rollouts", body)
    typer.echo(f"{view['id']} {view['phase']} {view['checkpoint']}")


def act(gateway: str, key: str, state_dir: Path, rollout_id: str, action: str, body: dict[str, Any]) -> None:
    view = call(gateway, key, state_dir, "POST", f"/operator/v1/rollouts/{rollout_id}:{action}", body)
    typer.echo(f"{view['id']} {view['phase']}")


RolloutArgument = Annotated[str, typer.Argument(help="A rollout's id; without it, the active one.")]


@rollout.command("approve")
def approve_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Approve what is shown now; refused if the decision changed meanwhile."""
    view = current_rollout(gateway, key, state_dir, rollout_id)
    console.print(view["verdict_sentence"], highlight=False)
    seen = {"generation": view["generation"], "decision_digest": view["decision_digest"]}
    act(gateway, key, state_dir, view["id"], "approve", seen)


@rollout.command("abort")
def abort_rollout(
    rollout_id: RolloutArgument = "",
    note: Annotated[str, typer.Option(help="Why, for the audit trail.")] = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Take the canary out of traffic at once."""
    view = current_rollout(gateway, key, state_dir, rollout_id)
    act(gateway, key, state_dir, view["id"], "abort", {"note": note})


@rollout.command("pause")
def pause_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Hold the step and the weight where they are."""
    act(gateway, key, state_dir, current_rollout(gateway, key, state_dir, rollout_id)["id"], "pause", {})


@rollout.command("resume")
def resume_rollout(
    rollout_id: RolloutArgument = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Go on from where the rollout was paused."""
    act(gateway, key, state_dir, current_rollout(gateway, key, state_dir, rollout_id)["id"], "resume", {})


@rollout.command("rollback")
def roll_back(
    gateway: GatewayOption = DEFAULT_GATEWAY, key: KeyOption = "", state_dir: StateOption = DEFAULT_STATE
) -> None:
    """Go back to the checkpoint that served before."""
    view = call(gateway, key, state_dir, "POST", "/operator/v1/rollouts:rollback", {})
    typer.echo(f"{view['id']} {view['phase']}")


def show_status(
    as_json: JsonOption = False,
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Show what serves, what is on trial, what the trainer does and why it did not train."""
    status = call(gateway, key, state_dir, "GET", "/operator/v1/status")
    trainer_url = os.environ.get("PREFLOOP_TRAINER_URL", "")
    if not trainer_url:
        port = httpx.URL(gateway).port or 8800
        trainer_url = f"http://127.0.0.1:{port + 2}"
    try:
        trainer = httpx.get(trainer_url + "/status", timeout=5).json()
    except (httpx.TransportError, ValueError):
        trainer = None
    if as_json:
        typer.echo(json.dumps({"gateway": status, "trainer": trainer}, indent=2))
        return
    table = Table(show_header=False)
    table.add_row("serving", (status["stable"] or {}).get("id", "nothing yet"))
    table.add_row("on trial", (status["canary"] or {}).get("id", "nothing"))
    if status["rollout"]:
        table.add_row("rollout", f"{status['rollout']['phase']}: {status['rollout']['verdict_sentence']}")
    table.add_row("counts", ", ".join(f"{name} {value}" for name, value in status["counters"].items()))
    for engine in status["engines"]:
        table.add_row("engine", f"{engine['url']} {'up' if engine['up'] else 'down'}, holds {len(engine['adapters'])}")
    if trainer is None:
        table.add_row("trainer", f"does not answer at {trainer_url}")
    else:
        round_state = trainer["round"]
        table.add_row("trainer", f"{round_state['state']}: {round_state['reason'] or 'nothing to say'}")
        table.add_row("preferences", f"{trainer['preferences']}, {trainer['new_since_round']} since the last round")
        for past in trainer["rounds"][-5:]:
            table.add_row(f"round {past['number']}", f"{past['outcome']}: {past['reason'] or past['checkpoint']}")
    console.print(table)
