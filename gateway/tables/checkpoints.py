"""Registered checkpoints: what the trainer published, and what became of each."""

from dataclasses import asdict, dataclass

import msgspec
from sqlalchemy import Column, Connection, Float, Integer, String, Table, Text, bindparam, insert, update

from feedback.database import metadata
from feedback.manifest import Manifest
from gateway.errors import RefusedAction
from gateway.tables.columns import select_rows

# status of a checkpoint: waiting -> canary -> stable -> draining -> retired -> deleted; or superseded while it waited.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("parent", String(200)),
    Column("kind", String(40), nullable=False),
    Column("digest", String(128), nullable=False, index=True),
    Column("path", Text, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("status", String(20), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("arrived_at", Float, nullable=False),
)


@dataclass(frozen=True)
class CheckpointRow:
    """A registered checkpoint; `manifest` is JSON, `parsed` its typed form."""

    id: str
    number: int
    parent: str | None
    kind: str
    digest: str
    path: str
    manifest: str
    status: str
    created_at: float
    arrived_at: float

    @property
    def parsed(self) -> Manifest:
        """The manifest as written by the trainer."""
        return msgspec.json.decode(self.manifest.encode(), type=Manifest)

    @property
    def stored_as(self) -> str:
        """The id under which its files are published: of an A/A copy in a store, stable's."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def is_full(self) -> bool:
        """Whether it is a whole model, for an engine of its own."""
        return self.kind != "lora" and self.parsed.is_full


# Built once: what runs at every look costs less to run than to build.
_CHECKPOINTS = select_rows(CheckpointRow, checkpoints)
_ALL_CHECKPOINTS = _CHECKPOINTS.order_by(checkpoints.c.arrived_at, checkpoints.c.number)
_CHECKPOINTS_BY_STATUS = _ALL_CHECKPOINTS.where(checkpoints.c.status == bindparam("status"))


def register_checkpoint(conn: Connection, manifest: Manifest, path: str, now: float) -> tuple[CheckpointRow, bool]:
    """Add a checkpoint as "waiting"; returns (row, whether it is new). Idempotent by digest and by id.

    Raises ValueError if the id exists with other content.
    """
    same_id = get_checkpoint(conn, manifest.id)
    if same_id is not None:
        if same_id.digest != manifest.digest:
            raise ValueError(f"checkpoint {manifest.id} is registered with other content")
        return same_id, False
    if manifest.kind != "aa":  # an A/A copy has its original's files, hence its digest
        query = _CHECKPOINTS.where(checkpoints.c.digest == manifest.digest, checkpoints.c.kind != "aa")
        found = conn.execute(query).first()
        if found is not None:
            return CheckpointRow(*found), False
    text = msgspec.json.encode(manifest).decode()
    row = CheckpointRow(
        id=manifest.id, number=manifest.number, parent=manifest.parent, kind=manifest.kind, digest=manifest.digest,
        path=path, manifest=text, status="waiting", created_at=manifest.created_at, arrived_at=now,
    )  # fmt: skip
    conn.execute(insert(checkpoints).values(**asdict(row)))
    return row, True


def get_checkpoint(conn: Connection, checkpoint: str) -> CheckpointRow | None:
    row = conn.execute(_CHECKPOINTS.where(checkpoints.c.id == checkpoint)).first()
    return None if row is None else CheckpointRow(*row)


def list_checkpoints(conn: Connection, status: str | None = None) -> list[CheckpointRow]:
    """Return checkpoints in order of arrival."""
    query = _ALL_CHECKPOINTS if status is None else _CHECKPOINTS_BY_STATUS
    return [CheckpointRow(*row) for row in conn.execute(query, {"status": status})]


def set_status(conn: Connection, checkpoint: str, status: str) -> None:
    conn.execute(update(checkpoints).where(checkpoints.c.id == checkpoint).values(status=status))


def require_startable(row: CheckpointRow | None, checkpoint: str) -> CheckpointRow:
    """A checkpoint that may be put on trial. Raises LookupError or RefusedAction."""
    if row is None:
        raise LookupError(checkpoint)
    if row.status in ("stable", "canary", "baking", "waiting"):
        raise RefusedAction(f"Checkpoint {checkpoint} is {row.status} already.")
    if row.status == "deleted":
        raise RefusedAction(f"The files of checkpoint {checkpoint} were deleted.")
    return row


def queue_checkpoint(conn: Connection, checkpoint: str, now: float) -> None:
    """Let a checkpoint wait for a rollout (again), as the newest."""
    conn.execute(update(checkpoints).where(checkpoints.c.id == checkpoint).values(status="waiting", arrived_at=now))
