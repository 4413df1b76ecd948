"""The gateway's operator API as the commands call it: options, one request, and its answer.

Raises CommandFailed with the gateway's own words when it refuses, and in one line when it is away or cannot be read.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import typer

from feedback.secret_files import read_admin_key
from prefloop.terminal import CommandFailed, print_json

GatewayOption = Annotated[str, typer.Option("--gateway", envvar="PREFLOOP_GATEWAY_URL", help="The gateway's address.")]
KeyOption = Annotated[
    str,
    typer.Option("--key", envvar="PREFLOOP_KEY", help="An operator or admin key.", show_default="the local admin key"),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="PREFLOOP_STATE_DIR",
        help="The state directory.",
        show_default="as prefloop.toml says, else state",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
DEFAULT_GATEWAY = "http://127.0.0.1:8800"
TIMEOUT_S = 30.0
GATEWAY_OPTIONS: dict[str, tuple[Any, Any]] = {
    "gateway": (GatewayOption, DEFAULT_GATEWAY),
    "key": (KeyOption, ""),
    "state_dir": (StateOption, None),
}

T = TypeVar("T")


class NoAnswer(CommandFailed):
    """Nothing answers at the gateway's address; it may again."""


class Checkpoint(msgspec.Struct, frozen=True):
    """A checkpoint, by its name."""

    id: str


@dataclass(frozen=True)
class GatewayClient:
    """A gateway's address, and the key of whoever asks."""

    url: str
    key: str

    def ask(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        """One request, and what its answer says."""
        return self.read(self.send(method, path, body), kind)

    def read(self, answer: bytes, kind: type[T]) -> T:
        """What an answer says."""
        return decode_answer(self.url, answer, kind)

    def show(self, method: str, path: str, kind: type[T], body: Any = None, *, as_json: bool) -> T | None:
        """One request, and what its answer says; as_json: the answer is printed as it came, and None returned."""
        answer = self.send(method, path, body)
        read = self.read(answer, kind)
        if as_json:
            print_json(answer)
        return None if as_json else read

    def send(self, method: str, path: str, body: Any = None) -> bytes:
        """One request, and its answer as it came."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        try:
            response = httpx.request(method, self.url + path, content=content, headers=headers, timeout=TIMEOUT_S)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise CommandFailed(f"{self.url} is no address of a gateway: write http://HOST:PORT.") from None
        except httpx.RequestError as error:
            raise NoAnswer(f"No gateway answers at {self.url} ({error}). Is `prefloop up` running?") from None
        if not response.is_success:
            raise CommandFailed(f"{response.status_code}: {_read_error(response)}")
        return response.content


def decode_answer(url: str, answer: bytes, kind: type[T]) -> T:
    """What an answer of `url` says. Raises CommandFailed if it is of another form."""
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.MsgspecError as error:
        raise CommandFailed(f"{url} answers what this release cannot read: {error}.") from None


def with_gateway(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options that say which gateway, and whose key: it takes them as `client`."""

    def run(**given: Any) -> None:
        command(client=connect(*(given.pop(name) for name in GATEWAY_OPTIONS)), **given)

    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in GATEWAY_OPTIONS.items()
    ]
    signature = inspect.signature(command, eval_str=True)
    kept = [each for each in signature.parameters.values() if each.name != "client"]
    run.__doc__ = command.__doc__
    run.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return run


def connect(gateway: str, key: str, state_dir: Path | None) -> GatewayClient:
    """The client that the options ask for; without a key, the admin key of the state directory."""
    if not key:
        state_dir = find_state_dir(state_dir)
        key = read_admin_key(state_dir)
    if not key:
        raise CommandFailed(
            f"No key: pass --key or PREFLOOP_KEY, or point --state-dir at the gateway's ({state_dir} has none)."
        )
    if not (key.isascii() and key.isprintable()):
        raise CommandFailed("The key holds characters that no key has.")
    return GatewayClient(gateway.rstrip("/"), key)


def find_state_dir(given: Path | None) -> Path:
    """Where state is kept: as the command line, the environment or prefloop.toml says. Raises SettingsError."""
    from feedback.settings import SharedSettings

    return SharedSettings().state_dir if given is None else given


def quote_id(text: str) -> str:
    """An id as one part of a path, whatever was typed."""
    return quote(text, safe="", errors="surrogateescape")


def _read_error(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300].strip() or response.reason_phrase
