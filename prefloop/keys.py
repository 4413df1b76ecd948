"""The keys of the command line: made, listed, limited, revoked. A client of the gateway's HTTP API and nothing more."""

import math
from typing import Annotated, Any

import typer
from rich.table import Table

from prefloop.operator import (
    DEFAULT_GATEWAY,
    DEFAULT_STATE,
    GatewayOption,
    KeyOption,
    StateOption,
    call,
    console,
    fail,
    format_time,
)

commands = typer.Typer(help="Create, list, limit and revoke API keys.", no_args_is_help=True)


def limit_option(what: str) -> Any:
    return typer.Option(metavar="NUMBER|none", help=f"Most {what}; `none` lifts the limit.", show_default=False)


RequestsPerMinute = Annotated[str, limit_option("requests a minute")]
RequestsPerDay = Annotated[str, limit_option("requests a day (UTC)")]
TokensPerMinute = Annotated[str, limit_option("tokens a minute, of prompts and answers")]
TokensPerDay = Annotated[str, limit_option("tokens a day")]
BudgetPerMinute = Annotated[str, limit_option("money a minute, in the currency of the gateway's prices")]
BudgetPerDay = Annotated[str, limit_option("money a day")]


def read_limits(**given: str) -> dict[str, float | None]:
    """The limits that were given, by name; None lifts one. Leaves with its own words at what is neither."""
    limits: dict[str, float | None] = {}
    for name, text in given.items():
        if text.lower() == "none":
            limits[name] = None
        elif text:
            try:
                limit = float(text) if name.startswith("budget") else int(text)
            except ValueError:
                limit = -1
            if not 0 <= limit < math.inf:
                raise fail(f"--{name.replace('_', '-')}: {text} is neither a number from 0 up nor `none`.")
            limits[name] = limit
    return limits


def format_limits(limits: dict[str, float | None] | None) -> str:
    """Such as `60 requests/minute`, one a line."""
    lines = []
    for name, limit in (limits or {}).items():
        what, _, period = name.partition("_per_")
        if limit is not None:
            lines.append(f"{limit:,} {what}/{period}")
    return "\n".join(lines)


@commands.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for, such as the app's name.")],
    scope: Annotated[str, typer.Option(help="app, chooser, operator or admin.")] = "app",
    pairs: Annotated[bool, typer.Option(help="Let requests of this key ask for two answers.")] = True,
    requests_per_minute: RequestsPerMinute = "",
    requests_per_day: RequestsPerDay = "",
    tokens_per_minute: TokensPerMinute = "",
    tokens_per_day: TokensPerDay = "",
    budget_per_minute: BudgetPerMinute = "",
    budget_per_day: BudgetPerDay = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Create a key and print it, once."""
    limits = read_limits(
        requests_per_minute=requests_per_minute,
        requests_per_day=requests_per_day,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
        budget_per_minute=budget_per_minute,
        budget_per_day=budget_per_day,
    )
    body = {"name": name, "scope": scope, "pairs": pairs, "limits": limits}
    created = call(gateway, key, state_dir, "POST", "/operator/v1/keys", body)
    typer.echo(created["key"])


@commands.command("list")
def list_keys(
    gateway: GatewayOption = DEFAULT_GATEWAY, key: KeyOption = "", state_dir: StateOption = DEFAULT_STATE
) -> None:
    """List the keys, never their secrets."""
    table = Table("id", "name", "scope", "pairs", "limits", "created", "revoked")
    for row in call(gateway, key, state_dir, "GET", "/operator/v1/keys")["data"]:
        revoked = row.get("revoked_at")
        table.add_row(
            row["id"],
            row["name"],
            row["scope"],
            "yes" if row["pairs"] else "no",
            format_limits(row.get("limits")),
            format_time(row["created_at"]),
            format_time(revoked) if revoked else "",
        )
    console.print(table)


@commands.command("limit")
def limit_key(
    key_id: Annotated[str, typer.Argument(help="The id that `prefloop keys list` shows.")],
    requests_per_minute: RequestsPerMinute = "",
    requests_per_day: RequestsPerDay = "",
    tokens_per_minute: TokensPerMinute = "",
    tokens_per_day: TokensPerDay = "",
    budget_per_minute: BudgetPerMinute = "",
    budget_per_day: BudgetPerDay = "",
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Change a key's limits; those not given stay."""
    limits = read_limits(
        requests_per_minute=requests_per_minute,
        requests_per_day=requests_per_day,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
        budget_per_minute=budget_per_minute,
        budget_per_day=budget_per_day,
    )
    if not limits:
        raise fail("Say at least one limit, such as --requests-per-minute 60.")
    changed = call(gateway, key, state_dir, "PATCH", f"/operator/v1/keys/{key_id}", {"limits": limits})
    typer.echo(format_limits(changed["limits"]) or "no limits")


@commands.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id that `prefloop keys list` shows.")],
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Revoke a key at once."""
    call(gateway, key, state_dir, "DELETE", f"/operator/v1/keys/{key_id}")
    typer.echo(f"revoked {key_id}")
