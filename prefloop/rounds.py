"""`prefloop round`: lists, shows, compares and starts the trainer's rounds, as a client of its status server.

The server listens on the trainer's own machine; PREFLOOP_TRAINER_URL names another address.
"""

from __future__ import annotations

import os
import time
from typing import Annotated, Any, TypeVar

import httpx
import msgspec
import typer
from rich.table import Table

from prefloop.gateway_client import DEFAULT_GATEWAY, GatewayOption, JsonOption
from prefloop.status import guess_trainer_url
from prefloop.terminal import fail, format_time, plain

commands = typer.Typer(help="List, show, compare and start the trainer's rounds.", no_args_is_help=True)

T = TypeVar("T")
TIMEOUT_S = 10.0
POLL_S = 1.0
BUSY = ("preparing", "training", "evaluating", "publishing")
NumberArgument = Annotated[int, typer.Argument(min=1, help="A round's number.")]


class ListedRound(msgspec.Struct, frozen=True):
    """A finished round, as it is listed."""

    number: int
    kind: str
    outcome: str
    finished_at: float
    reason: str = ""
    checkpoint: str | None = None
    start: str = "stable"


class RoundList(msgspec.Struct, frozen=True):
    """Finished rounds, oldest first."""

    data: list[ListedRound]


class ShownRound(msgspec.Struct, frozen=True):
    """All that is on record of a round. details: what it was made of, and seconds by phase."""

    number: int
    kind: str
    started_at: float
    outcome: str | None = None
    finished_at: float | None = None
    reason: str = ""
    checkpoint: str | None = None
    start: str = "stable"
    num_left: int = 0
    num_rows: int = 0
    has_report: bool = False
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}


class Learnt(msgspec.Struct, frozen=True):
    """What one checkpoint learnt of a person."""

    checkpoint: str
    num_rows: int
    num_ancestors: int


class LearntList(msgspec.Struct, frozen=True):
    """Every checkpoint that learnt from a person."""

    data: list[Learnt]


class RoundState(msgspec.Struct, frozen=True):
    """What the trainer does now, and why."""

    state: str
    reason: str
    number: int | None = None
    progress: float = 0.0
    seconds_left: float | None = None


class TrainerState(msgspec.Struct, frozen=True):
    """What is read of the trainer's status."""

    round: RoundState
    rounds: list[ListedRound] = []


def find_url(gateway: str) -> str:
    """The trainer's address: as the environment says, else two ports above the gateway's."""
    return (os.environ.get("PREFLOOP_TRAINER_URL") or guess_trainer_url(gateway)).rstrip("/")


def send(url: str, method: str, path: str, body: Any = None) -> bytes:
    """The trainer's answer. Ends the command with one line if it refuses, or does not answer."""
    try:
        answer = httpx.request(method, url + path, json=body, timeout=TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise fail(f"No trainer answers at {url}: {error}.") from None
    if answer.is_error:
        try:
            message = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{answer.status_code} {answer.text[:200]}"
        raise fail(f"{message}.")
    return answer.content


def ask(url: str, path: str, kind: type[T]) -> T:
    """The trainer's answer to GET, read."""
    try:
        return msgspec.json.decode(send(url, "GET", path), type=kind)
    except msgspec.MsgspecError as error:
        raise fail(f"{url} answers what this release cannot read: {error}.") from None


@commands.command("list")
def list_rounds(gateway: GatewayOption = DEFAULT_GATEWAY) -> None:
    """List finished rounds, the newest first."""
    table = Table("round", "kind", "outcome", "checkpoint", "began from", "ended", "reason")
    for row in reversed(ask(find_url(gateway), "/rounds", RoundList).data):
        table.add_row(
            str(row.number),
            row.kind,
            row.outcome,
            row.checkpoint or "",
            row.start,
            format_time(row.finished_at),
            row.reason,
        )
    plain.print(table)


@commands.command("show")
def show_round(number: NumberArgument, as_json: JsonOption = False, gateway: GatewayOption = DEFAULT_GATEWAY) -> None:
    """Show one round: rows, phases, figures, and where its report is."""
    url = find_url(gateway)
    if as_json:
        typer.echo(msgspec.json.format(send(url, "GET", f"/rounds/{number}"), indent=2))
        return
    row = ask(url, f"/rounds/{number}", ShownRound)
    plain.print(f"round {row.number} ({row.kind})  {row.outcome or 'under way'}  {row.checkpoint or ''}".rstrip())
    plain.print(row.reason or "it has not ended")
    details = row.details
    plain.print(
        f"from {row.start} ({details.get('parent', 'nothing')}), {details.get('num_new', 0)} new rows and "
        f"{details.get('num_replayed', 0)} replayed, {row.num_left} left; {row.num_rows} were learnt from"
    )
    if labelled := details.get("labelled"):
        plain.print(f"labelled by the reward model: {describe_labelled(labelled)}")
    phases = Table("phase", "seconds")
    for name, seconds in details.get("phases", {}).items():
        phases.add_row(name, f"{seconds:.1f}")
    plain.print(phases)
    figures = Table("figure", "value")
    for name, value in sorted(row.metrics.items()):
        figures.add_row(name, f"{value:.4g}")
    plain.print(figures)
    if parts := details.get("reward_parts"):
        reward = Table("reward", "weight", "before", "after")
        for part in parts:
            reward.add_row(part["name"], f"{part['weight']:g}", f"{part['before']:+.4g}", f"{part['after']:+.4g}")
        plain.print(reward)
    if rung := details.get("rung"):
        plain.print(f"beside {rung['first']}: {describe_rung(rung)}")
    for sentence in details.get("ladder", []):
        plain.print(f"ladder: {sentence}")
    if row.has_report:
        plain.print(f"report: {url}/rounds/{number}/report")


def describe_labelled(labelled: dict[str, Any]) -> str:
    """`12 pairs of 20 prompts, 84% sure`, or why none."""
    if labelled["reason"]:
        return f"none, as {labelled['reason']}"
    return f"{labelled['num']} pairs of {labelled['num_prompts']} prompts, {labelled['probability']:.0%} sure"


def describe_rung(rung: dict[str, Any]) -> str:
    """`wins 55% (45% to 65%) by the auditor`."""
    wins = rung["win_rate"]
    return f"wins {wins['value']:.0%} ({wins['low']:.0%} to {wins['high']:.0%}) by the {rung['judge']}"


def list_columns(row: ShownRound) -> dict[str, float]:
    """All numbers of a round by name: seconds by phase, the reward's parts, the ladder, and its figures."""
    details = row.details
    columns = {f"seconds {name}": seconds for name, seconds in details.get("phases", {}).items()}
    columns |= {f"reward {part['name']}": part["after"] - part["before"] for part in details.get("reward_parts", [])}
    if rung := details.get("rung"):
        columns["ladder wins"] = rung["win_rate"]["value"]
        columns |= {f"ladder {name}": value for name, value in rung["frozen"].items()}
    return {**columns, **row.metrics}


@commands.command("compare")
def compare_rounds(first: NumberArgument, second: NumberArgument, gateway: GatewayOption = DEFAULT_GATEWAY) -> None:
    """Show the figures and phases of two rounds side by side."""
    url = find_url(gateway)
    rows = [ask(url, f"/rounds/{number}", ShownRound) for number in (first, second)]
    columns = [list_columns(row) for row in rows]
    table = Table("", f"round {first}", f"round {second}", "change")
    table.add_row("outcome", rows[0].outcome or "", rows[1].outcome or "", "")
    for name in sorted({*columns[0], *columns[1]}):
        before, after = (column.get(name) for column in columns)
        change = f"{after - before:+.4g}" if before is not None and after is not None else ""
        table.add_row(name, *("" if value is None else f"{value:.4g}" for value in (before, after)), change)
    plain.print(table)


@commands.command("run")
def run_round(
    from_base: Annotated[
        bool, typer.Option("--from-base", help="Begin from the base, on a full replay of what is stored.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show its progress until it has ended.")] = False,
    gateway: GatewayOption = DEFAULT_GATEWAY,
) -> None:
    """Have the trainer run a round now, however few choices are new. Refused while one runs."""
    url = find_url(gateway)
    before = ask(url, "/status", TrainerState)
    newest = max((past.number for past in before.rounds), default=0)
    send(url, "POST", "/rounds", {"from_base": from_base})
    plain.print("a round is asked for")
    if wait:
        follow_round(url, newest)


def follow_round(url: str, newest: int) -> None:
    """Print what the trainer does whenever it changes, until a round after `newest` has ended."""
    shown = ""
    while True:
        state = ask(url, "/status", TrainerState)
        ended = [past for past in state.rounds if past.number > newest]
        if ended:
            plain.print(f"round {ended[0].number} {ended[0].outcome}: {ended[0].checkpoint or ended[0].reason}")
            return
        line = describe_progress(state.round)
        if line != shown:
            plain.print(line)
            shown = line
        time.sleep(POLL_S)


def describe_progress(state: RoundState) -> str:
    """`training round 3, 40%, 2 min left: on 400 new and 200 replayed rows`."""
    what = f"{state.state} round {state.number}" if state.state in BUSY else state.state
    left = f", {describe_seconds(state.seconds_left)} left" if state.seconds_left is not None else ""
    return f"{what}, {state.progress:.0%}{left}: {state.reason}"


def describe_seconds(seconds: float) -> str:
    """`40 s` or `3 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@commands.command("lineage")
def show_lineage(
    user: Annotated[str, typer.Argument(help="A user as rows name them: a keyed hash.")],
    gateway: GatewayOption = DEFAULT_GATEWAY,
) -> None:
    """List the checkpoints that learnt from a person's rows, themselves or through what they began from."""
    url = find_url(gateway)
    found = ask(url, f"/lineage?{httpx.QueryParams({'user': user})}", LearntList).data
    if not found:
        plain.print("no checkpoint learnt from this person")
        return
    table = Table("checkpoint", "rows of its own round", "ancestors that learnt from them")
    for row in found:
        table.add_row(row.checkpoint, str(row.num_rows), str(row.num_ancestors))
    plain.print(table)
