"""The gateway's own tables: checkpoints, the serving pointer, rollouts, their events and decisions, first requests.

Functions take an open connection and never commit. The serving row carries the generation and the fence: a transition
that does not hold both changes nothing (see `move`). Keys and comparisons live elsewhere.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import msgspec
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    Select,
    String,
    Table,
    Text,
    bindparam,
    func,
    insert,
    select,
    update,
)

from feedback.database import insert_missing, insert_or_ignore, metadata
from feedback.manifest import Manifest
from gateway.rollout.observations import Observation

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

serving = Table(
    "serving",
    metadata,
    Column("policy", String(200), primary_key=True),
    Column("stable", String(200)),
    Column("generation", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("policy", String(200), nullable=False),
    Column("checkpoint", String(200), nullable=False),
    Column("stable", String(200), nullable=False),
    Column("aa", Boolean, nullable=False),
    Column("phase", String(30), nullable=False, index=True),
    Column("analysis", String(30), nullable=False),
    Column("reason", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("step_started_at", Float, nullable=False),
    Column("weight", Float, nullable=False),
    Column("duel_share", Float, nullable=False),
    Column("salt", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("phase_started_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("resume_phase", String(30), nullable=False),
    Column("split_waived", Boolean, nullable=False),
    Column("decision_digest", String(64), nullable=False),
    Column("settings", Text, nullable=False),
)

rollout_events = Table(
    "rollout_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("rollout", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("from_phase", String(30), nullable=False),
    Column("to_phase", String(30), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("generation", Integer, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("rollout", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("verdict", String(40), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("data", Text, nullable=False),
)

observations = Table(
    "rollout_observations",
    metadata,
    Column("rollout", String(64), primary_key=True),
    Column("user", String(128), primary_key=True),
    Column("arm", String(10), primary_key=True),
    Column("paired", Boolean, nullable=False),
    Column("weight", Float, nullable=False),
    Column("error", Boolean, nullable=False),
    Column("truncated", Boolean, nullable=False),
    Column("refused", Boolean, nullable=False),
    Column("latency_first_s", Float),
    Column("at", Float, nullable=False),
)

FINISHED = ("Healthy", "Degraded")


class StaleController(Exception):
    """Another controller, or another transition, moved the rollout first; nothing was written."""


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
    def is_full(self) -> bool:
        """Whether it is a whole model, for an engine of its own."""
        return self.kind != "lora" and self.parsed.is_full


@dataclass(frozen=True)
class ServingRow:
    """Which checkpoint is stable. Every transition raises `generation`; every new controller raises `fence`."""

    policy: str
    stable: str | None
    generation: int
    fence: int


@dataclass(frozen=True)
class RolloutRow:
    """One rollout, all of its state. `analysis`: Pending, Running, Successful, Failed, Error or Inconclusive."""

    id: str
    policy: str
    checkpoint: str
    stable: str
    aa: bool
    phase: str
    analysis: str
    reason: str
    step: int
    step_started_at: float
    weight: float
    duel_share: float
    salt: str
    generation: int
    created_at: float
    started_at: float | None
    phase_started_at: float
    finished_at: float | None
    resume_phase: str
    split_waived: bool
    decision_digest: str
    settings: str


@dataclass(frozen=True)
class EventRow:
    """One append-only line of a rollout's audit trail."""

    at: float
    from_phase: str
    to_phase: str
    actor: str
    reason: str


def _select(row_type: type, table: Table) -> Select[Any]:
    """The columns in the order of the type's fields, so that `row_type(*row)` is what was read."""
    return select(*(table.c[field.name] for field in fields(row_type)))


# Built once: what runs at every look costs less to run than to build.
_CHECKPOINTS = _select(CheckpointRow, checkpoints)
_ALL_CHECKPOINTS = _CHECKPOINTS.order_by(checkpoints.c.arrived_at, checkpoints.c.number)
_CHECKPOINTS_BY_STATUS = _ALL_CHECKPOINTS.where(checkpoints.c.status == bindparam("status"))
_SERVING = _select(ServingRow, serving).where(serving.c.policy == bindparam("policy"))
_ROLLOUTS = _select(RolloutRow, rollouts)
_ACTIVE_ROLLOUTS = _ROLLOUTS.where(
    rollouts.c.policy == bindparam("policy"), rollouts.c.phase.not_in(FINISHED)
).order_by(rollouts.c.created_at)
_OBSERVATIONS = (
    _select(Observation, observations)
    .where(observations.c.rollout == bindparam("rollout"))
    .order_by(observations.c.at, observations.c.user, observations.c.arm)
)


# -- checkpoints


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


def queue_checkpoint(conn: Connection, checkpoint: str, now: float) -> None:
    """Let a checkpoint wait for a rollout (again), as the newest."""
    conn.execute(update(checkpoints).where(checkpoints.c.id == checkpoint).values(status="waiting", arrived_at=now))


# -- serving pointer


def get_serving(conn: Connection, policy: str) -> ServingRow:
    """Return the policy's pointer, making an empty one if there is none."""
    row = conn.execute(_SERVING, {"policy": policy}).first()
    if row is None:
        insert_or_ignore(conn, serving, {"policy": policy, "stable": None, "generation": 0, "fence": 0})
        return ServingRow(policy, None, 0, 0)
    return ServingRow(*row)


def get_stable(conn: Connection, policy: str) -> CheckpointRow | None:
    row = conn.execute(_SERVING, {"policy": policy}).first()
    return None if row is None or row.stable is None else get_checkpoint(conn, row.stable)


def take_fence(conn: Connection, policy: str) -> int:
    """Become the controller: every earlier holder's moves fail from now on."""
    fence = get_serving(conn, policy).fence + 1
    conn.execute(update(serving).where(serving.c.policy == policy).values(fence=fence))
    return fence


def require_fence(conn: Connection, policy: str, fence: int) -> None:
    """Raises StaleController if another controller leads; else none begins to before this transaction has ended."""
    query = select(serving.c.fence).where(serving.c.policy == policy).with_for_update()
    if conn.execute(query).scalar_one() != fence:
        raise StaleController(f"fence {fence}")


def advance(conn: Connection, policy: str, generation: int, fence: int | None, stable: str | None = None) -> int:
    """Raise the generation, and move the pointer to `stable` if given.

    Raises StaleController if the generation, or the fence where one is given, has moved on.
    """
    values: dict[str, Any] = {"generation": generation + 1}
    if stable is not None:
        values["stable"] = stable
    where = [serving.c.policy == policy, serving.c.generation == generation]
    if fence is not None:
        where.append(serving.c.fence == fence)
    if conn.execute(update(serving).where(*where).values(**values)).rowcount != 1:
        raise StaleController(f"generation {generation}, fence {fence}")
    return generation + 1


# -- rollouts


def add_rollout(conn: Connection, row: RolloutRow) -> None:
    conn.execute(insert(rollouts).values(**asdict(row)))
    _add_event(conn, row, "", "controller", row.reason or "Created", row.created_at)


def get_rollout(conn: Connection, rollout: str) -> RolloutRow | None:
    row = conn.execute(_ROLLOUTS.where(rollouts.c.id == rollout)).first()
    return None if row is None else RolloutRow(*row)


def list_rollouts(conn: Connection, limit: int = 100) -> list[RolloutRow]:
    """Return the newest rollouts first."""
    query = _ROLLOUTS.order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc()).limit(limit)
    return [RolloutRow(*row) for row in conn.execute(query)]


def count_rollouts(conn: Connection) -> int:
    return conn.execute(select(func.count()).select_from(rollouts)).scalar_one()


def active_rollout(conn: Connection, policy: str) -> RolloutRow | None:
    """Return the one rollout that has not finished."""
    row = conn.execute(_ACTIVE_ROLLOUTS, {"policy": policy}).first()
    return None if row is None else RolloutRow(*row)


def move(
    conn: Connection, old: RolloutRow, new: RolloutRow, *, fence: int | None, actor: str, reason: str, now: float,
    stable: str | None = None,
) -> RolloutRow:  # fmt: skip
    """Replace `old` by `new` under the next generation and append the event, all or nothing.

    Raises StaleController if the row is not at `old.generation` or the fence has moved.
    """
    generation = advance(conn, old.policy, get_serving(conn, old.policy).generation, fence, stable)
    new = replace(new, generation=generation)
    where = (rollouts.c.id == old.id, rollouts.c.generation == old.generation)
    if conn.execute(update(rollouts).where(*where).values(**asdict(new))).rowcount != 1:
        raise StaleController(f"rollout {old.id} is past generation {old.generation}")
    _add_event(conn, new, old.phase, actor, reason, now)
    return new


def _add_event(conn: Connection, row: RolloutRow, old_phase: str, actor: str, reason: str, now: float) -> None:
    values = {"from_phase": old_phase, "to_phase": row.phase, "actor": actor, "reason": reason}
    conn.execute(insert(rollout_events).values(rollout=row.id, at=now, generation=row.generation, **values))


def list_events(conn: Connection, rollout: str) -> list[EventRow]:
    query = select(rollout_events).where(rollout_events.c.rollout == rollout).order_by(rollout_events.c.id)
    return [EventRow(r.at, r.from_phase, r.to_phase, r.actor, r.reason) for r in conn.execute(query)]


def add_decision(conn: Connection, rollout: str, at: float, verdict: str, digest: str, data: str) -> None:
    conn.execute(insert(decisions).values(rollout=rollout, at=at, verdict=verdict, digest=digest, data=data))


# -- first requests


def add_observations(conn: Connection, rows: Sequence[Observation]) -> None:
    """Store first requests; one that is already there is left alone."""
    rows = sorted(rows, key=lambda row: (row.user, row.arm))  # gateways that store the same ones wait in one order
    insert_missing(conn, observations, [asdict(row) for row in rows])


def load_observations(conn: Connection, rollout: str) -> list[Observation]:
    """Return a rollout's first requests, oldest first."""
    return [Observation(*row) for row in conn.execute(_OBSERVATIONS, {"rollout": rollout})]
