"""The keys of the command line: made, listed, limited, revoked. A client of the gateway's HTTP API and nothing more."""

import inspect
import math
from collections.abc import Callable
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


LIMITS = {
    "requests_per_minute": "requests a minute",
    "requests_per_day": "requests a day (UTC)",
    "tokens_per_minute": "tokens a minute, of prompts and answers",
    "tokens_per_day": "tokens a day",
    "budget_per_minute": "money a minute, in the currency of the gateway's prices",
    "budget_per_day": "money a day",
}


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each limit; it takes those that were given as `limits`."""

    def run(**given: Any) -> None:
        command(limits=read_limits(**{name: given.pop(name) for name in LIMITS}), **given)

    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default="",
            annotation=Annotated[
                str, typer.Option(metavar="NUMBER|none", help=f"Most {what}; `none` lifts it.", show_default=False)
            ],
        )
        for name, what in LIMITS.items()
    ]
    signature = inspect.signature(command, eval_str=True)
    kept = [each for each in signature.parameters.values() if each.name != "limits"]
    run.__doc__ = command.__doc__
    run.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return run


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
@with_limits
def create_key(
    *,
    limits: dict[str, float | None],
    name: Annotated[str, typer.Argument(help="What the key is for, such as the app's name.")],
    scope: Annotated[str, typer.Option(help="app, chooser, operator or admin.")] = "app",
    pairs: Annotated[bool, typer.Option(help="Let requests of this key ask for two answers.")] = True,
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Create a key and print it, once."""
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
@with_limits
def limit_key(
    *,
    limits: dict[str, float | None],
    key_id: Annotated[str, typer.Argument(help="The id that `prefloop keys list` shows.")],
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = DEFAULT_STATE,
) -> None:
    """Change a key's limits; those not given stay."""
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
