"""`prefloop checkpoints`: lists, shows, compares and deletes checkpoints, as a client of the gateway's HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer

from prefloop.gateway_client import GatewayClient, JsonOption, quote_id, with_gateway
from prefloop.rollouts.records import RolloutList
from prefloop.rollouts.view import tabulate_rollouts
from prefloop.stored_checkpoints import add_store_commands
from prefloop.terminal import CommandFailed, format_time, make_table, plain, print_json

commands = typer.Typer(
    help="List, show, compare and delete checkpoints; sign, verify and collect in the store.", no_args_is_help=True
)
add_store_commands(commands)

LIST = "/operator/v1/checkpoints"
ROLLOUTS = "/operator/v1/rollouts?limit=100"
CheckpointArgument = Annotated[str, typer.Argument(help="A checkpoint's id.")]


class Checkpoint(msgspec.Struct, frozen=True):
    """A checkpoint, as it is listed. metrics: figures of the offline judgement."""

    id: str
    number: int
    parent: str | None
    digest: str
    status: str
    created_at: float
    metrics: dict[str, Any] = {}
    may_delete: bool = False


class CheckpointList(msgspec.Struct, frozen=True):
    """All checkpoints, in order of arrival."""

    data: list[Checkpoint]


@commands.command("list")
@with_gateway
def list_checkpoints(client: GatewayClient, as_json: JsonOption = False) -> None:
    """List checkpoints, the newest first."""
    if found := client.show("GET", LIST, CheckpointList, as_json=as_json):
        table = make_table(
            "checkpoint", "status", "parent", "published", whole=("checkpoint", "parent", "published", "status")
        )
        for row in reversed(found.data):
            table.add_row(row.id, row.status, row.parent or "", format_time(row.created_at))
        plain.print(table)


@commands.command("show")
@with_gateway
def show_checkpoint(client: GatewayClient, checkpoint: CheckpointArgument, as_json: JsonOption = False) -> None:
    """Show one checkpoint: what it descends from, its figures, and its rollouts."""
    known = read_checkpoints(client)
    row = find_checkpoint(known, checkpoint)
    lineage = list_ancestors(known, row)
    if as_json:
        print_json({**msgspec.to_builtins(row), "ancestors": lineage})
        return
    plain.print(f"{row.id}  {row.status}  published {format_time(row.created_at)}")
    plain.print(f"digest {row.digest}", soft_wrap=True)
    plain.print("its files may go: nothing needs them" if row.may_delete else "its files are kept")
    for number, ancestor in enumerate(lineage):
        plain.print(f"{'descends from' if number == 0 else '':<13}  {ancestor}")
    figures = make_table("figure", "value")
    for name, value in sorted(row.metrics.items()):
        figures.add_row(name, format_figure(value))
    plain.print(figures if row.metrics else "no offline figures")
    tried = [each for each in client.ask("GET", ROLLOUTS, RolloutList).data if each.checkpoint == row.id]
    plain.print(tabulate_rollouts(tried) if tried else "no rollout among the last hundred")


@commands.command("compare")
@with_gateway
def compare_checkpoints(
    client: GatewayClient, first: CheckpointArgument, second: CheckpointArgument, as_json: JsonOption = False
) -> None:
    """Show the offline figures of two checkpoints side by side."""
    known = read_checkpoints(client)
    rows = [find_checkpoint(known, each) for each in (first, second)]
    compared = compare_figures(rows[0].metrics, rows[1].metrics)
    if as_json:
        print_json({"first": rows[0], "second": rows[1], "change": {name: one[2] for name, one in compared.items()}})
        return
    for place, row in zip(("first", "second"), rows, strict=True):
        plain.print(f"{place:<6}  {row.id}  {row.status}")
    table = make_table("figure", "first", "second", "change", whole=("first", "second", "change"))
    for name, (before, after, change) in compared.items():
        table.add_row(name, format_figure(before), format_figure(after), "" if change is None else f"{change:+.4g}")
    plain.print(table if compared else "neither has offline figures")


@commands.command("delete")
@with_gateway
def delete_checkpoint(client: GatewayClient, checkpoint: CheckpointArgument, as_json: JsonOption = False) -> None:
    """Give up a checkpoint that nothing needs, so that its files may go."""
    path = f"{LIST}/{quote_id(checkpoint)}"
    if deleted := client.show("DELETE", path, Checkpoint, as_json=as_json):
        plain.print(f"{deleted.id} {deleted.status}")


def read_checkpoints(client: GatewayClient) -> dict[str, Checkpoint]:
    """Every registered checkpoint by id."""
    return {row.id: row for row in client.ask("GET", LIST, CheckpointList).data}


def find_checkpoint(known: Mapping[str, Checkpoint], checkpoint: str) -> Checkpoint:
    """Raises CommandFailed if there is no such checkpoint."""
    if (row := known.get(checkpoint)) is None:
        raise CommandFailed(f"There is no checkpoint {checkpoint}: `prefloop checkpoints list` shows them.")
    return row


def list_ancestors(known: Mapping[str, Checkpoint], row: Checkpoint) -> list[str]:
    """Ids from the parent to the first, as far as they are registered; the last may not be."""
    found: list[str] = []
    parent = row.parent
    while parent is not None and parent not in found:
        found.append(parent)
        parent = known[parent].parent if parent in known else None
    return found


def compare_figures(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any, float | None]]:
    """Both values by name, and their difference where both are numbers."""
    compared = {}
    for name in sorted({*first, *second}):
        before, after = first.get(name), second.get(name)
        change = after - before if isinstance(before, int | float) and isinstance(after, int | float) else None
        compared[name] = (before, after, change)
    return compared


def format_figure(value: Any) -> str:
    """A number short, "" for none."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)
