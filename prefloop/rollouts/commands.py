"""`prefloop rollout`: starts, watches, shows, approves and ends rollouts, as a client of the gateway's HTTP API."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import msgspec
import typer
from rich.live import Live

from prefloop.gateway_client import GatewayClient, JsonOption, NoAnswer, with_gateway
from prefloop.rollouts import actions
from prefloop.rollouts.records import (
    Replay,
    Rollout,
    RolloutArgument,
    RolloutList,
    find_rollout_id,
    rollout_path,
)
from prefloop.rollouts.view import describe_change, print_replay, render_rollout, tabulate_rollouts
from prefloop.terminal import aside, plain, print_json

commands = typer.Typer(help="Start, watch, approve and abort rollouts.", no_args_is_help=True)


@commands.command("list")
@with_gateway
def list_rollouts(
    client: GatewayClient,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many of the newest.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List rollouts, the newest first."""
    if found := client.show("GET", f"/operator/v1/rollouts?limit={limit}", RolloutList, as_json=as_json):
        plain.print(tabulate_rollouts(found.data))


@commands.command("show")
@with_gateway
def show_rollout(client: GatewayClient, rollout_id: RolloutArgument = "", as_json: JsonOption = False) -> None:
    """Show one rollout: verdict, evidence, guardrails, audit trail."""
    path = rollout_path(find_rollout_id(client, rollout_id))
    if row := client.show("GET", path, Rollout, as_json=as_json):
        plain.print(render_rollout(row))


@commands.command("watch")
@with_gateway
def watch_rollout(
    client: GatewayClient,
    rollout_id: RolloutArgument = "",
    interval_s: Annotated[float, typer.Option("--interval", min=0.05, help="Seconds between looks.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line, at every change.")] = False,
) -> None:
    """Follow a rollout to its end, which is exit status 0 if it was promoted and 1 if not.

    In a terminal the whole rollout is kept on the screen; elsewhere there is a line at every change.
    """
    path = rollout_path(find_rollout_id(client, rollout_id))
    if plain.is_terminal and not as_json:
        with Live(console=plain, auto_refresh=False, vertical_overflow="visible") as screen:
            row = follow(client, path, interval_s, lambda row, _: screen.update(render_rollout(row), refresh=True))
    else:
        row = follow(client, path, interval_s, ChangePrinter(as_json))
    raise typer.Exit(0 if row.phase == "Healthy" else 1)


@commands.command("replay")
@with_gateway
def replay_rollout(client: GatewayClient, rollout_id: RolloutArgument = "", as_json: JsonOption = False) -> None:
    """Make every decision of a rollout again from what it rested on; exit status 1 if one comes out otherwise."""
    path = rollout_path(find_rollout_id(client, rollout_id), "/replay")
    answer = client.send("GET", path)
    found = client.read(answer, Replay)
    if as_json:
        print_json(answer)
    else:
        print_replay(plain, found)
    if any(not one.is_same for one in found.decisions):
        raise typer.Exit(1)


for name, action in {
    "start": actions.start_rollout,
    "approve": actions.approve_rollout,
    "pause": actions.pause_rollout,
    "resume": actions.resume_rollout,
    "skip": actions.skip_step,
    "abort": actions.abort_rollout,
    "rollback": actions.roll_back,
    "retry": actions.retry_rollout,
    "promote": actions.promote_rollout,
}.items():
    commands.command(name)(action)


class ChangePrinter:
    """Prints a line whenever a rollout says something new."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._said = ""

    def __call__(self, row: Rollout, answer: bytes) -> None:
        said = describe_change(row)
        if said != self._said:
            self._said = said
            typer.echo(
                msgspec.json.format(answer, indent=-1) if self._as_json else f"{time.strftime('%H:%M:%S')}  {said}"
            )


def follow(client: GatewayClient, path: str, interval_s: float, show: Callable[[Rollout, bytes], object]) -> Rollout:
    """Show a rollout again and again until it is over, and return it. A gateway that is away is waited for."""
    is_away = False
    while True:
        try:
            answer = client.send("GET", path)
        except NoAnswer as error:
            if not is_away:
                aside.print(f"{error} Waiting for it.", soft_wrap=True)
            is_away = True
        else:
            is_away = False
            row = client.read(answer, Rollout)
            show(row, answer)
            if row.is_over:
                return row
        time.sleep(interval_s)
