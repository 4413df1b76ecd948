"""The operators' routes of checkpoints: registered by the trainer, listed, given up for good."""

from typing import Annotated, Any

import msgspec

from feedback.errors import ManifestError, StoreUnavailable, UnknownCheckpoint
from gateway.access.keys import Identity
from gateway.api.conflicts import answer_conflicts
from gateway.api.routes import OperatorRoutes
from gateway.errors import bad_request, not_found, unavailable
from gateway.rollout.checkpoints import ListedCheckpoint
from gateway.serving.context import Context
from gateway.tables.checkpoints import CheckpointRow


class NewCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint of the store that `checkpoints_url` names, by its id; without one, by its directory, which the engines see.

    Exactly one of both.
    """

    checkpoint: Annotated[str, msgspec.Meta(max_length=80)] = ""
    path: str = ""


class RegisteredCheckpoint(msgspec.Struct, frozen=True):
    """What was taken."""

    id: str
    digest: str
    number: int
    status: str


class CheckpointView(msgspec.Struct, frozen=True):
    """A checkpoint. Said in the list alone: `may_delete`: its files may go, as nothing needs them; `may_serve`: engines should
    have its files; `kind`: lora, full or aa; `stored_as`: the id under which its files are in the store; `is_full`: a whole
    model."""

    id: str
    number: int
    parent: str | None
    digest: str
    status: str
    metrics: dict[str, Any]
    created_at: float
    may_delete: bool | msgspec.UnsetType = msgspec.UNSET
    may_serve: bool | msgspec.UnsetType = msgspec.UNSET
    kind: str | msgspec.UnsetType = msgspec.UNSET
    is_full: bool | msgspec.UnsetType = msgspec.UNSET
    stored_as: str | msgspec.UnsetType = msgspec.UNSET


class CheckpointDetail(CheckpointView, frozen=True, kw_only=True):
    """A checkpoint with its manifest. path: its directory; files: how many it has; watermark: next offset of the log, by partition."""

    path: str
    arrived_at: float
    base_digest: str
    rank: int
    num_preferences: int
    num_files: int
    watermark: dict[str, int]
    settings: dict[str, Any]


class CheckpointList(msgspec.Struct, frozen=True):
    """All checkpoints, in order of arrival."""

    data: list[CheckpointView]


def add_checkpoint_routes(routes: OperatorRoutes, context: Context) -> None:
    """GET, POST and DELETE /operator/v1/checkpoints."""
    registry = context.controller.registry

    @routes.add(
        "POST", "/checkpoints", "Register a checkpoint; 200 if it was known",
        {200: RegisteredCheckpoint, 201: RegisteredCheckpoint}, body=NewCheckpoint,
    )  # fmt: skip
    async def register(_: Identity, body: NewCheckpoint) -> tuple[int, RegisteredCheckpoint]:
        if bool(body.path) == bool(body.checkpoint):
            raise bad_request("Give the checkpoint's id in the store, or its directory as path.", param="checkpoint")
        param = "path" if body.path else "checkpoint"
        try:
            row, is_new = await (
                registry.register(body.path) if body.path else registry.register_stored(body.checkpoint)
            )
        except StoreUnavailable as error:
            raise unavailable(f"The checkpoint store does not answer: {error}") from error
        except (OSError, ValueError, ManifestError, UnknownCheckpoint) as error:
            raise bad_request(f"No valid checkpoint there: {error}", param=param) from error
        return 201 if is_new else 200, RegisteredCheckpoint(row.id, row.digest, row.number, row.status)

    @routes.add("GET", "/checkpoints", "List the checkpoints", {200: CheckpointList})
    async def show_all(_: Identity) -> CheckpointList:
        return CheckpointList([show_listed(each) for each in await registry.list_checkpoints()])

    @routes.add("GET", "/checkpoints/{checkpoint}", "Show a checkpoint with its manifest", {200: CheckpointDetail}, 404)
    async def show_one(_: Identity, checkpoint: str) -> CheckpointDetail:
        found = next((each for each in await registry.list_checkpoints() if each.row.id == checkpoint), None)
        if found is None:
            raise not_found(f"No checkpoint {checkpoint}.")
        return show_manifest(found)

    @routes.add(
        "DELETE", "/checkpoints/{checkpoint}", "Give up a checkpoint that nothing needs, so that its files may go",
        {200: CheckpointView}, 404, 409,
    )  # fmt: skip
    async def delete(_: Identity, checkpoint: str) -> CheckpointView:
        return show_checkpoint(await answer_conflicts(registry.delete(checkpoint)))


def show_checkpoint(row: CheckpointRow) -> CheckpointView:
    """A checkpoint as operators see it."""
    return CheckpointView(
        row.id, row.number, row.parent, row.digest, row.status, dict(row.parsed.metrics), row.created_at
    )


def show_listed(listed: ListedCheckpoint) -> CheckpointView:
    """A checkpoint in the list, with what those who fetch, serve and remove files need to know."""
    row = listed.row
    return msgspec.structs.replace(
        show_checkpoint(row), may_delete=listed.may_delete, may_serve=listed.may_serve, kind=row.kind, is_full=row.is_full,
        stored_as=row.stored_as,
    )  # fmt: skip


def show_manifest(listed: ListedCheckpoint) -> CheckpointDetail:
    """A checkpoint as operators see it, with all that its manifest says but the probe and the files' hashes."""
    row, manifest = listed.row, listed.row.parsed
    return CheckpointDetail(
        **msgspec.structs.asdict(show_listed(listed)),
        path=row.path,
        arrived_at=row.arrived_at,
        base_digest=manifest.base_digest,
        rank=manifest.rank,
        num_preferences=manifest.num_preferences,
        num_files=len(manifest.files),
        watermark={str(partition): offset for partition, offset in manifest.watermark.items()},
        settings=dict(manifest.settings),
    )
