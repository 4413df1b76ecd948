"""The operators' routes of checkpoints: registered by the trainer, listed, given up for good."""

from typing import Annotated, Any

import msgspec

from feedback.errors import ManifestError
from gateway.access.keys import Identity
from gateway.api.conflicts import answer_conflicts
from gateway.api.routes import OperatorRoutes
from gateway.errors import bad_request, not_found
from gateway.serving.context import Context
from gateway.tables.checkpoints import CheckpointRow


class NewCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint directory, visible to the gateway and the engines."""

    path: Annotated[str, msgspec.Meta(min_length=1)]


class RegisteredCheckpoint(msgspec.Struct, frozen=True):
    """What was taken."""

    id: str
    digest: str
    number: int
    status: str


class CheckpointView(msgspec.Struct, frozen=True):
    """A checkpoint. `may_delete`: its files may go, as nothing needs them; said in the list alone."""

    id: str
    number: int
    parent: str | None
    digest: str
    status: str
    metrics: dict[str, Any]
    created_at: float
    may_delete: bool | msgspec.UnsetType = msgspec.UNSET


class CheckpointDetail(CheckpointView, frozen=True, kw_only=True):
    """A checkpoint with its manifest. path: its directory; files: how many it has; watermark: next offset of the log, by partition."""

    kind: str
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
        try:
            row, is_new = await registry.register(body.path)
        except (OSError, ValueError, ManifestError) as error:
            raise bad_request(f"No valid checkpoint at this path: {error}", param="path") from error
        return 201 if is_new else 200, RegisteredCheckpoint(row.id, row.digest, row.number, row.status)

    @routes.add("GET", "/checkpoints", "List the checkpoints", {200: CheckpointList})
    async def show_all(_: Identity) -> CheckpointList:
        rows = await registry.list_checkpoints()
        return CheckpointList([show_checkpoint(row, may_delete) for row, may_delete in rows])

    @routes.add("GET", "/checkpoints/{checkpoint}", "Show a checkpoint with its manifest", {200: CheckpointDetail}, 404)
    async def show_one(_: Identity, checkpoint: str) -> CheckpointDetail:
        found = next((pair for pair in await registry.list_checkpoints() if pair[0].id == checkpoint), None)
        if found is None:
            raise not_found(f"No checkpoint {checkpoint}.")
        return show_manifest(*found)

    @routes.add(
        "DELETE", "/checkpoints/{checkpoint}", "Give up a checkpoint that nothing needs, so that its files may go",
        {200: CheckpointView}, 404, 409,
    )  # fmt: skip
    async def delete(_: Identity, checkpoint: str) -> CheckpointView:
        return show_checkpoint(await answer_conflicts(registry.delete(checkpoint)))


def show_checkpoint(row: CheckpointRow, may_delete: bool | msgspec.UnsetType = msgspec.UNSET) -> CheckpointView:
    """A checkpoint as operators see it."""
    return CheckpointView(
        row.id, row.number, row.parent, row.digest, row.status, dict(row.parsed.metrics), row.created_at, may_delete
    )


def show_manifest(row: CheckpointRow, may_delete: bool) -> CheckpointDetail:
    """A checkpoint as operators see it, with all that its manifest says but the probe and the files' hashes."""
    manifest = row.parsed
    return CheckpointDetail(
        **msgspec.structs.asdict(show_checkpoint(row, may_delete)),
        kind=row.kind,
        path=row.path,
        arrived_at=row.arrived_at,
        base_digest=manifest.base_digest,
        rank=manifest.rank,
        num_preferences=manifest.num_preferences,
        num_files=len(manifest.files),
        watermark={str(partition): offset for partition, offset in manifest.watermark.items()},
        settings=dict(manifest.settings),
    )
