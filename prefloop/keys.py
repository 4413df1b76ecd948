"""`prefloop keys`: makes, lists, limits, rotates and revokes API keys, as a client of the gateway's HTTP API."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from prefloop.durations import parse_duration
from prefloop.gateway_client import GatewayClient, JsonOption, quote_id, with_gateway
from prefloop.key_usage import show_usage
from prefloop.terminal import CommandFailed, format_day, format_time, make_table, plain

commands = typer.Typer(help="Create, list, limit, rotate and revoke API keys.", no_args_is_help=True)
commands.command("usage")(show_usage)


LIMITS = {
    "requests_per_minute": "requests a minute",
    "requests_per_day": "requests a day (UTC)",
    "tokens_per_minute": "tokens a minute, of prompts and answers",
    "tokens_per_day": "tokens a day",
    "budget_per_minute": "money a minute, in the currency of the gateway's prices",
    "budget_per_day": "money a day",
}

KeyArgument = Annotated[str, typer.Argument(help="The id that `prefloop keys list` shows.")]
Limits = dict[str, int | float | None]  # by name; None lifts one


class Key(msgspec.Struct, frozen=True):
    """A key without its secret."""

    id: str
    name: str
    scope: str
    pairs: bool
    created_at: float
    app: str = ""
    expires_at: float | None = None
    revoked_at: float | None = None
    old_secret_until: float | None = None
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
    """The limits and the end that hold now."""

    limits: Limits | None = None
    expires_at: float | None = None


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


def read_length(text: str, what: str) -> float:
    """Seconds. Leaves with its own words at what is no length of time."""
    if (seconds := parse_duration(text)) is None:
        raise CommandFailed(f"{what}: {text!r} is no length of time: write 90s, 15m, 12h or 30d.")
    return seconds


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
    app: Annotated[
        str, typer.Option(help="Whose users it speaks for; keys of one app share them.", show_default="the name")
    ] = "",
    expires_in: Annotated[str, typer.Option(help="When it ends, such as 12h or 90d.", show_default="never")] = "",
    pairs: Annotated[bool, typer.Option(help="Let requests of this key ask for two answers.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Create a key and print it, once."""
    body: dict[str, Any] = {"name": name, "scope": scope, "pairs": pairs, "limits": limits}
    if app:
        body["app"] = app
    if expires_in:
        body["expires_at"] = time.time() + read_length(expires_in, "--expires-in")
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
        name = row.name if row.app in ("", row.name) else f"{row.name}\nof {row.app}"
        table.add_row(row.id, Text(name), scope, format_limits(row.limits), describe_state(row, time.time()))
    plain.print(table)


def describe_state(row: Key, now: float) -> str:
    """When it was made, when it ends or ended, and until when its old secret works, one a line."""
    lines = [f"since {format_day(row.created_at)}"]
    if row.expires_at is not None:
        lines.append(f"{'expired' if row.expires_at <= now else 'ends'} {format_day(row.expires_at)}")
    if row.old_secret_until is not None and row.old_secret_until > now:
        lines.append(f"old until {format_day(row.old_secret_until)}")
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
    key_id: KeyArgument,
    as_json: JsonOption = False,
) -> None:
    """Change a key's limits; those not given stay."""
    if not limits:
        raise CommandFailed("Say at least one limit, such as --requests-per-minute 60.")
    path, body = f"/operator/v1/keys/{quote_id(key_id)}", {"limits": limits}
    if changed := client.show("PATCH", path, ChangedKey, body, as_json=as_json):
        typer.echo(format_limits(changed.limits) or "no limits")


@commands.command("rotate")
@with_gateway
def rotate_key(
    client: GatewayClient,
    key_id: KeyArgument,
    grace: Annotated[
        str, typer.Option(help="For how long the present secret goes on working, such as 1h; 0s: not.")
    ] = "24h",
    as_json: JsonOption = False,
) -> None:
    """Give a key another secret and print it, once; its app, limits and users stay."""
    path, body = f"/operator/v1/keys/{quote_id(key_id)}:rotate", {"grace_s": read_length(grace, "--grace")}
    if made := client.show("POST", path, NewKey, body, as_json=as_json):
        typer.echo(made.key)


@commands.command("expire")
@with_gateway
def expire_key(
    client: GatewayClient,
    key_id: KeyArgument,
    when: Annotated[str, typer.Argument(metavar="LENGTH|never", help="From now on, such as 12h or 90d.")],
    as_json: JsonOption = False,
) -> None:
    """Let a key end so long from now, or never."""
    expires_at = None if when == "never" else time.time() + read_length(when, "the time")
    path, body = f"/operator/v1/keys/{quote_id(key_id)}", {"expires_at": expires_at}
    if changed := client.show("PATCH", path, ChangedKey, body, as_json=as_json):
        typer.echo(f"ends {format_time(changed.expires_at)}" if changed.expires_at else "never ends")


@commands.command("revoke")
@with_gateway
def revoke_key(
    client: GatewayClient,
    key_id: KeyArgument,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key at once."""
    if revoked := client.show("DELETE", f"/operator/v1/keys/{quote_id(key_id)}", RevokedKey, as_json=as_json):
        typer.echo(f"revoked {revoked.id}")
