"""`prefloop keys usage`: what each key used, or one of them by day."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from prefloop.gateway_client import GatewayClient, JsonOption, quote_id, with_gateway
from prefloop.terminal import make_table, plain

COUNTS = ("requests", "prompt", "completion", "spend")


class Usage(msgspec.Struct, frozen=True):
    """What was used. estimated: requests whose tokens no engine said."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    spend: float
    estimated: int = 0


class DayUsage(Usage, frozen=True):
    """The same of one day."""

    day: str = ""


class KeyTotal(msgspec.Struct, frozen=True):
    """What a key used in all of the days."""

    id: str
    name: str
    total: Usage


class UsageSummary(msgspec.Struct, frozen=True):
    """Every key that was used."""

    data: list[KeyTotal]
    total: Usage


class KeyUsage(msgspec.Struct, frozen=True):
    """What a key used by day."""

    name: str
    days: list[DayUsage]
    total: Usage


@with_gateway
def show_usage(
    client: GatewayClient,
    key_id: Annotated[str, typer.Argument(help="A key's id, to see it by day; without it, all keys in sum.")] = "",
    days: Annotated[int, typer.Option(min=1, max=400, help="The last days (UTC), today among them.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """Show the tokens and the spend of all keys, or of one by day."""
    if key_id:
        path = f"/operator/v1/keys/{quote_id(key_id)}/usage?days={days}"
        if of_one := client.show("GET", path, KeyUsage, as_json=as_json):
            table = make_table("day", *COUNTS, whole=("day", *COUNTS))
            for day in of_one.days:
                table.add_row(day.day, *format_counts(day))
            print_with_total(table, ["all"], of_one.total)
        return
    if of_all := client.show("GET", f"/operator/v1/keys/usage?days={days}", UsageSummary, as_json=as_json):
        table = make_table("id", "name", *COUNTS, whole=("id", *COUNTS))
        for row in of_all.data:
            table.add_row(row.id, Text(row.name), *format_counts(row.total))
        print_with_total(table, ["all", ""], of_all.total)


def print_with_total(table: Table, head: list[str], total: Usage) -> None:
    """The table with a last row for all, and a word about what was estimated."""
    table.add_row(*head, *format_counts(total))
    plain.print(table)
    if total.estimated:
        plain.print(f"tokens of {total.estimated:,} requests are estimated: their streams did not say them")


def format_counts(usage: Usage) -> list[str]:
    """As in COUNTS."""
    counts = (usage.requests, usage.prompt_tokens, usage.completion_tokens)
    return [*(f"{num:,}" for num in counts), f"{usage.spend:,.4f}"]
