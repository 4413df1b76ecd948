"""`prefloop keys`: makes, lists, limits and revokes API keys, as a client of the gateway's HTTP API."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from prefloop.gateway_client import DEFAULT_GATEWAY, GatewayOption, KeyOption, StateOption, connect, quote_id
from prefloop.terminal import fail, format_time, plain

commands = typer.Typer(help="Create, list, limit and revoke API keys.", no_args_is_help=True)


LIMITS = {
    "requests_per_minute": "requests a minute",
    "requests_per_day": "requests a day (UTC)",
    "tokens_per_minute": "tokens a minute, of prompts and answers",
    "tokens_per_day": "tokens a day",
    "budget_per_minute": "money a minute, in the currency of the gateway's prices",
    "budget_per_day": "money a day",
}

Limits = dict[str, int | float | None]  # by name; None lifts one


class Key(msgspec.Struct, frozen=True):
    """A key without its secret."""

    id: str
    name: str
    scope: str
    pairs: bool
    created_at: float
    revoked_at: float | None = None
    limits: Limits | None = None


class KeyList(msgspec.Struct, frozen=True):
    """All keys."""

    data: list[Key]


class NewKey(msgspec.Struct, frozen=True):
    """The key itself, which is told once."""

    key: str


class ChangedKey(msgspec.Struct, frozen=True):
    """The limits that hold now."""

    limits: Limits | None = None


def limit_option(what: str) -> Any:
    """A limit's option: a number, or `none`."""
    return typer.Option(metavar="NUMBER|none", help=f"Most {what}; `none` lifts the limit.", show_default=False)


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each limit; it takes those that were given as `limits`."""

    def run(**given: Any) -> None:
        command(limits=read_limits(**{name: given.pop(name) for name in LIMITS}), **given)

    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default="",
            annotation=Annotated[str, limit_option(what)],
        )
        for name, what in LIMITS.items()
    ]
    signature = inspect.signature(command, eval_str=True)
    kept = [each for each in signature.parameters.values() if each.name != "limits"]
    run.__doc__ = command.__doc__
    run.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return run


def read_limits(**given: str) -> Limits:
    """The limits that were given, by name; None lifts one. Leaves with its own words at what is neither."""
    limits: Limits = {}
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


def format_limits(limits: Mapping[str, int | float | None] | None) -> str:
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
    limits: Limits,
    name: Annotated[str, typer.Argument(help="What the key is for, such as the app's name.")],
    scope: Annotated[str, typer.Option(help="app, chooser, operator or admin.")] = "app",
    pairs: Annotated[bool, typer.Option(help="Let requests of this key ask for two answers.")] = True,
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Create a key and print it, once."""
    body = {"name": name, "scope": scope, "pairs": pairs, "limits": limits}
    typer.echo(connect(gateway, key, state_dir).ask("POST", "/operator/v1/keys", NewKey, body).key)


@commands.command("list")
def list_keys(gateway: GatewayOption = DEFAULT_GATEWAY, key: KeyOption = "", state_dir: StateOption = None) -> None:
    """List the keys, never their secrets."""
    table = Table("id", "name", "scope", "pairs", "limits", "created", "revoked")
    for row in connect(gateway, key, state_dir).ask("GET", "/operator/v1/keys", KeyList).data:
        table.add_row(
            row.id,
            row.name,
            row.scope,
            "yes" if row.pairs else "no",
            format_limits(row.limits),
            format_time(row.created_at),
            format_time(row.revoked_at),
        )
    plain.print(table)


@commands.command("limit")
@with_limits
def limit_key(
    *,
    limits: Limits,
    key_id: Annotated[str, typer.Argument(help="The id that `prefloop keys list` shows.")],
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Change a key's limits; those not given stay."""
    if not limits:
        raise fail("Say at least one limit, such as --requests-per-minute 60.")
    path, body = f"/operator/v1/keys/{quote_id(key_id)}", {"limits": limits}
    changed = connect(gateway, key, state_dir).ask("PATCH", path, ChangedKey, body)
    typer.echo(format_limits(changed.limits) or "no limits")


@commands.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id that `prefloop keys list` shows.")],
    gateway: GatewayOption = DEFAULT_GATEWAY,
    key: KeyOption = "",
    state_dir: StateOption = None,
) -> None:
    """Revoke a key at once."""
    connect(gateway, key, state_dir).send("DELETE", f"/operator/v1/keys/{quote_id(key_id)}")
    typer.echo(f"revoked {key_id}")
