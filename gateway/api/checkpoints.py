"""The operators' routes of checkpoints: registered by the trainer, listed, given up for good."""

from typing import Annotated, Any

import msgspec

from feedback.errors import ManifestError
from gateway.access.keys import Identity
from gateway.api.conflicts import answer_conflicts
from gateway.api.routes import OperatorRoutes
from gateway.errors import bad_request
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
