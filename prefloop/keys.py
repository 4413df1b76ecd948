"""`prefloop keys`: makes, lists, limits and revokes API keys, as a client of the gateway's HTTP API."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from prefloop.gateway_client import GatewayClient, JsonOption, quote_id, with_gateway
from prefloop.terminal import CommandFailed, format_day, make_table, plain

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


class RevokedKey(msgspec.Struct, frozen=True):
    """A key that works no more."""

    id: str


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
                raise CommandFailed(f"--{name.replace('_', '-')}: {text} is neither a number from 0 up nor `none`.")
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
@with_gateway
def create_key(
    *,
    client: GatewayClient,
    limits: Limits,
    name: Annotated[str, typer.Argument(help="What the key is for, such as the app's name.")],
    scope: Annotated[str, typer.Option(help="app, chooser, operator or admin.")] = "app",
    pairs: Annotated[bool, typer.Option(help="Let requests of this key ask for two answers.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Create a key and print it, once."""
    body = {"name": name, "scope": scope, "pairs": pairs, "limits": limits}
    if made := client.show("POST", "/operator/v1/keys", NewKey, body, as_json=as_json):
        typer.echo(made.key)


@commands.command("list")
@with_gateway
def list_keys(client: GatewayClient, as_json: JsonOption = False) -> None:
    """List the keys, never their secrets."""
    found = client.show("GET", "/operator/v1/keys", KeyList, as_json=as_json)
    if found is None:
        return
    table = make_table("id", "name", "scope", "limits", "state", whole=("id", "limits", "state"))
    for row in found.data:
        scope = row.scope if row.pairs else f"{row.scope}\nno pairs"
        table.add_row(row.id, Text(row.name), scope, format_limits(row.limits), describe_state(row))
    plain.print(table)


def describe_state(row: Key) -> str:
    """When it was made, and when it ended, one a line."""
    lines = [f"since {format_day(row.created_at)}"]
    if row.revoked_at is not None:
        lines.append(f"revoked {format_day(row.revoked_at)}")
    return "\n".join(lines)


@commands.command("limit")
@with_limits
@with_gateway
def limit_key(
    *,
    client: GatewayClient,
    limits: Limits,
    key_id: Annotated[str, typer.Argument(help="The id that `prefloop keys list` shows.")],
    as_json: JsonOption = False,
) -> None:
    """Change a key's limits; those not given stay."""
    if not limits:
        raise CommandFailed("Say at least one limit, such as --requests-per-minute 60.")
    path, body = f"/operator/v1/keys/{quote_id(key_id)}", {"limits": limits}
    if changed := client.show("PATCH", path, ChangedKey, body, as_json=as_json):
        typer.echo(format_limits(changed.limits) or "no limits")


@commands.command("revoke")
@with_gateway
def revoke_key(
    client: GatewayClient,
    key_id: Annotated[str, typer.Argument(help="The id that `prefloop keys list` shows.")],
    as_json: JsonOption = False,
) -> None:
    """Revoke a key at once."""
    if revoked := client.show("DELETE", f"/operator/v1/keys/{quote_id(key_id)}", RevokedKey, as_json=as_json):
        typer.echo(f"revoked {revoked.id}")
