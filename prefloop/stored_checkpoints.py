"""`prefloop checkpoints sign-key|sign|verify|collect`: what is done to the checkpoint store itself, without a gateway.

The store is the one of `checkpoints_url`, the keys those of `signing_key_file` and `trusted_keys_file`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefloop.gateway_client import JsonOption
from prefloop.terminal import CommandFailed, make_table, plain, print_json

if TYPE_CHECKING:
    from feedback.checkpoint_store import CheckpointStore
    from feedback.settings import SharedSettings

StoredArgument = Annotated[str, typer.Argument(help="A checkpoint's id in the store.")]


def add_store_commands(commands: typer.Typer) -> None:
    """Add them beside the commands that ask a gateway."""
    commands.command("sign-key")(make_key)
    commands.command("sign")(sign_checkpoint)
    commands.command("verify")(verify_checkpoints)
    commands.command("collect")(collect)


def make_key(
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where the private key goes; never overwritten.")] = Path(
        "signing-key.pem"
    ),
    as_json: JsonOption = False,
) -> None:
    """Make an Ed25519 key that signs checkpoints, and print its public key for trusted_keys_file."""
    from feedback.signing import make_signing_key

    try:
        key = make_signing_key(out)
    except OSError as error:
        raise CommandFailed(f"{out}: {error.strerror}.") from None
    if as_json:
        print_json(
            {"fingerprint": key.fingerprint, "public_key": key.public_pem.decode(), "private_key_file": str(out)}
        )
        return
    plain.print(key.public_pem.decode().strip(), soft_wrap=True, markup=False)


def sign_checkpoint(checkpoint: StoredArgument, as_json: JsonOption = False) -> None:
    """Sign a checkpoint that is in the store already, as when signing is taken up or a key replaced."""
    from feedback.errors import FeedbackError
    from feedback.signing import read_signing_key

    store, settings = open_configured_store()
    try:
        key = read_signing_key(settings.signing_key_file)
        if key is None:
            raise CommandFailed("No key: set signing_key_file (`prefloop checkpoints sign-key` makes one).")
        store.sign(checkpoint, key)
    except FeedbackError as error:
        raise CommandFailed(f"{error}.") from None
    if as_json:
        print_json({"checkpoint": checkpoint, "key": key.fingerprint})
    else:
        plain.print(f"{checkpoint} is signed by the key {key.fingerprint}")


def verify_checkpoints(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's id in the store.", show_default="all")] = "",
    as_json: JsonOption = False,
) -> None:
    """Read checkpoints as an engine's sidecar does, and say which of them would be refused, and why."""
    from feedback.checkpoint_store.fetching import find_fault
    from feedback.errors import FeedbackError
    from feedback.signing import read_trusted_keys

    store, settings = open_configured_store()
    try:
        trusted = read_trusted_keys(settings.trusted_keys_file)
        faults = {name: find_fault(store, name, trusted) for name in ([checkpoint] if checkpoint else store.list_ids())}
    except FeedbackError as error:
        raise CommandFailed(f"{error}.") from None
    if as_json:
        print_json({"data": [{"checkpoint": name, "fault": fault or None} for name, fault in faults.items()]})
    else:
        table = make_table("checkpoint", "found", whole=("checkpoint",))
        for name, fault in faults.items():
            table.add_row(name, fault or "good")
        plain.print(table if faults else "there is no checkpoint")
    raise typer.Exit(1 if any(faults.values()) else 0)


def collect(
    grace_hours: Annotated[float, typer.Option(min=0, help="Leave what is younger alone.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the files of the store that no checkpoint names, as the trainer does every hour."""
    from feedback.checkpoint_store import collect_blobs
    from feedback.errors import FeedbackError

    store, _ = open_configured_store()
    try:
        found = collect_blobs(store, grace_hours * 3600, is_dry_run=dry_run)
    except FeedbackError as error:
        raise CommandFailed(f"{error}.") from None
    if found.reason:
        raise CommandFailed(f"Nothing was collected: {found.reason}.")
    if as_json:
        print_json({"files": found.num_blobs, "bytes": found.num_bytes, "uploads": found.num_uploads})
        return
    plain.print(f"{found.num_blobs} files ({found.num_bytes} bytes) {'would go' if dry_run else 'are gone'}")


def open_configured_store() -> tuple[CheckpointStore, SharedSettings]:
    """The store of the settings. Raises CommandFailed if there is none."""
    from feedback.errors import StoreUnavailable
    from feedback.settings import SharedSettings

    settings = SharedSettings()
    try:
        store = settings.open_store()
    except StoreUnavailable as error:
        raise CommandFailed(f"{error}.") from None
    if store is None:
        raise CommandFailed("No checkpoints_url is set: checkpoints lie in a directory, and there is no store.")
    return store, settings
