"""`prefloop round`: lists, shows, compares and starts the trainer's rounds, as a client of its status server."""

from __future__ import annotations

import time
from typing import Annotated, Any

import httpx
import msgspec
import typer
from rich.text import Text

from prefloop.gateway_client import DEFAULT_GATEWAY, GatewayOption, JsonOption
from prefloop.terminal import format_time, make_table, plain, print_json
from prefloop.trainer_client import (
    LearntList,
    ListedRound,
    RoundList,
    RoundState,
    ShownRound,
    TrainerState,
    ask,
    find_url,
    send,
    show,
)

commands = typer.Typer(help="List, show, compare and start the trainer's rounds.", no_args_is_help=True)

POLL_S = 1.0
BUSY = ("preparing", "training", "evaluating", "publishing")
NumberArgument = Annotated[int, typer.Argument(min=1, help="A round's number.")]


@commands.command("list")
def list_rounds(as_json: JsonOption = False, gateway: GatewayOption = DEFAULT_GATEWAY) -> None:
    """List finished rounds, the newest first."""
    found = show(find_url(gateway), "/rounds", RoundList, as_json=as_json)
    if found is None:
        return
    table = make_table("round", "kind", "outcome", "checkpoint, ended", "reason", whole=("checkpoint, ended",))
    for row in reversed(found.data):
        ended = format_time(row.finished_at)
        table.add_row(
            str(row.number),
            f"{row.kind} from {row.start}",
            row.outcome,
            f"{row.checkpoint}\n{ended}" if row.checkpoint else ended,
            Text(row.reason),
        )
    plain.print(table)


@commands.command("show")
def show_round(number: NumberArgument, as_json: JsonOption = False, gateway: GatewayOption = DEFAULT_GATEWAY) -> None:
    """Show one round: rows, phases, figures, and where its report is."""
    url = find_url(gateway)
    row = show(url, f"/rounds/{number}", ShownRound, as_json=as_json)
    if row is None:
        return
    plain.print(f"round {row.number} ({row.kind})  {row.outcome or 'under way'}  {row.checkpoint or ''}".rstrip())
    plain.print(row.reason or "it has not ended")
    details = row.details
    plain.print(
        f"from {row.start} ({details.get('parent', 'nothing')}), {details.get('num_new', 0)} new rows and "
        f"{details.get('num_replayed', 0)} replayed, {row.num_left} left; {row.num_rows} were learnt from"
    )
    if labelled := details.get("labelled"):
        plain.print(f"labelled by the reward model: {describe_labelled(labelled)}")
    phases = make_table("phase", "seconds")
    for name, seconds in details.get("phases", {}).items():
        phases.add_row(name, f"{seconds:.1f}")
    plain.print(phases)
    figures = make_table("figure", "value")
    for name, value in sorted(row.metrics.items()):
        figures.add_row(name, f"{value:.4g}")
    plain.print(figures)
    if parts := details.get("reward_parts"):
        reward = make_table("reward", "weight", "before", "after")
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
def compare_rounds(
    first: NumberArgument,
    second: NumberArgument,
    as_json: JsonOption = False,
    gateway: GatewayOption = DEFAULT_GATEWAY,
) -> None:
    """Show the figures and phases of two rounds side by side."""
    url = find_url(gateway)
    rows = [ask(url, f"/rounds/{number}", ShownRound) for number in (first, second)]
    columns = [list_columns(row) for row in rows]
    if as_json:
        print_json({"first": {**msgspec.to_builtins(rows[0]), "figures": columns[0]},
                    "second": {**msgspec.to_builtins(rows[1]), "figures": columns[1]}})  # fmt: skip
        return
    table = make_table("", f"round {first}", f"round {second}", "change")
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
    as_json: JsonOption = False,
    gateway: GatewayOption = DEFAULT_GATEWAY,
) -> None:
    """Have the trainer run a round now, however few choices are new. Refused while one runs."""
    url = find_url(gateway)
    before = ask(url, "/status", TrainerState)
    newest = max((past.number for past in before.rounds), default=0)
    answer = send(url, "POST", "/rounds", {"from_base": from_base})
    if not as_json:
        plain.print("a round is asked for")
    if wait:
        ended = follow_round(url, newest, is_silent=as_json)
        if as_json:
            print_json(ended)
        else:
            plain.print(f"round {ended.number} {ended.outcome}: {ended.checkpoint or ended.reason}")
    elif as_json:
        print_json(answer)


def follow_round(url: str, newest: int, *, is_silent: bool) -> ListedRound:
    """Print what the trainer does whenever it changes, until a round after `newest` has ended: that one."""
    shown = ""
    while True:
        state = ask(url, "/status", TrainerState)
        ended = [past for past in state.rounds if past.number > newest]
        if ended:
            return ended[0]
        line = describe_progress(state.round)
        if line != shown and not is_silent:
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
    as_json: JsonOption = False,
    gateway: GatewayOption = DEFAULT_GATEWAY,
) -> None:
    """List the checkpoints that learnt from a person's rows, themselves or through what they began from."""
    url = find_url(gateway)
    learnt = show(url, f"/lineage?{httpx.QueryParams({'user': user})}", LearntList, as_json=as_json)
    if learnt is None:
        return
    if not learnt.data:
        plain.print("no checkpoint learnt from this person")
        return
    table = make_table("checkpoint", "rows of its own round", "ancestors that learnt from them", whole=("checkpoint",))
    for row in learnt.data:
        table.add_row(row.checkpoint, str(row.num_rows), str(row.num_ancestors))
    plain.print(table)
