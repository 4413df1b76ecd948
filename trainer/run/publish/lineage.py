"""Which rows each checkpoint learnt from, and which checkpoints descend from which.

Answers what erasure asks: which checkpoints learnt from a person's rows, themselves or through what they began from. Rows
are named by event id and by whose they are, a keyed hash: the answer stays when the rows are erased, and when a checkpoint's
directory is removed. Removes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from feedback.database import split_parameters
from feedback.inbox import demonstrations, metadata, preferences, signals
from trainer.run.publish.checkpoints import Published
from trainer.run.rounds import rounds

checkpoint_rows = sa.Table(
    "checkpoint_rows",
    metadata,
    sa.Column("checkpoint", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True, index=True),
    sa.Column("is_replay", sa.Boolean, nullable=False),
    sa.Column("user", sa.Text, nullable=False, server_default="", index=True),
    sa.Column("role", sa.Text, nullable=False, server_default="chosen"),  # a Role
)
Role = Literal["chosen", "prompt", "labelled"]
"""What a checkpoint learnt from a row: what was said in it; its prompt alone; or a pair on its prompt that the reward model
labelled, which has an event id of its own."""


@dataclass(frozen=True)
class Learnt:
    """What one checkpoint learnt of a person: rows of its own round, and from how many ancestors it has more."""

    checkpoint: str
    num_rows: int
    num_ancestors: int


def record_rows(
    connection: sa.Connection,
    checkpoint: str,
    new: Sequence[str],
    replayed: Sequence[str],
    *,
    role: Role = "chosen",
    labelled: Mapping[str, str] | None = None,
) -> None:
    """Say what a checkpoint learnt from, by event ids, and from whom. Repeating it changes nothing.

    role: of new and replayed rows. labelled: of each pair that the reward model labelled, by its own event id, the event id
    of the choice whose prompt it is.
    """
    connection.execute(sa.delete(checkpoint_rows).where(checkpoint_rows.c.checkpoint == checkpoint))
    pairs = labelled or {}
    users = _find_users(connection, [*new, *replayed, *pairs.values()])

    def make(event_id: str, source: str, role: Role, *, is_replay: bool = False) -> dict[str, Any]:
        user = users.get(source, "")
        return {"checkpoint": checkpoint, "event_id": event_id, "is_replay": is_replay, "user": user, "role": role}

    rows = [make(event_id, event_id, role) for event_id in new]
    rows += [make(event_id, event_id, role, is_replay=True) for event_id in replayed]
    rows += [make(event_id, source, "labelled") for event_id, source in pairs.items()]
    for some in split_parameters(rows):
        connection.execute(sa.insert(checkpoint_rows), some)


def _find_users(connection: sa.Connection, event_ids: Sequence[str]) -> dict[str, str]:
    """Whose the rows of these events are, by event id."""
    users: dict[str, str] = {}
    for some in split_parameters(event_ids):
        for table in (preferences, signals, demonstrations):
            query = sa.select(table.c.event_id, table.c.user).where(table.c.event_id.in_(some))
            users |= {event_id: user for event_id, user in connection.execute(query)}
    return users


def list_rows(connection: sa.Connection, checkpoint: str) -> list[str]:
    """Event ids that a checkpoint's own round learnt from, in whatever role, sorted."""
    query = sa.select(checkpoint_rows.c.event_id).where(checkpoint_rows.c.checkpoint == checkpoint)
    return sorted(connection.execute(query).scalars())


def count_rows_of_user(connection: sa.Connection, user: str) -> dict[str, int]:
    """Rows of a person by the checkpoint whose round learnt from them, whether or not they are still there."""
    if not user:  # of rows that nobody put a name to
        return {}
    query = (
        sa.select(checkpoint_rows.c.checkpoint, sa.func.count())
        .where(checkpoint_rows.c.user == user)
        .group_by(checkpoint_rows.c.checkpoint)
    )
    return {checkpoint: num for checkpoint, num in connection.execute(query)}


@dataclass(frozen=True)
class Origin:
    """What a checkpoint's round began from, as its plan had it. parent: beside which it was judged."""

    parent: str | None
    kind: str
    start: str
    reference: str | None


Origins = Mapping[str, Origin]
"""By id of the checkpoint, whether or not its directory is still here."""


def load_origins(connection: sa.Connection, published: Iterable[Published]) -> dict[str, Origin]:
    """Of every checkpoint that a round on record published; where there is no such record, as the directory says."""
    return {each.manifest.id: _read_origin(each) for each in published} | _load_recorded(connection)


def _load_recorded(connection: sa.Connection) -> dict[str, Origin]:
    columns = (rounds.c.checkpoint, rounds.c.kind, rounds.c.start, rounds.c.details)
    found = {}
    for row in connection.execute(sa.select(*columns).where(rounds.c.checkpoint.is_not(None))):
        details = json.loads(row.details)
        if "parent" in details:  # a round that was closed without its plan has none
            found[row.checkpoint] = Origin(details["parent"], row.kind, row.start, details.get("reference"))
    return found


def _read_origin(checkpoint: Published) -> Origin:
    manifest = checkpoint.manifest
    settings = {"kind": "", "start": "stable", "reference": None} | manifest.settings
    return Origin(manifest.parent, settings["kind"], settings["start"], settings["reference"])


def trace_learnt(own: dict[str, int], origins: Origins) -> list[Learnt]:
    """Every checkpoint that learnt from the rows counted in `own`, by itself or by what it began from; oldest first.

    A checkpoint whose round began from the base learnt nothing from its parent.
    """
    traced = []
    for checkpoint in sorted({*origins, *own}):
        num_ancestors = sum(1 for each in list_taught_by(checkpoint, origins)[1:] if own.get(each))
        if own.get(checkpoint) or num_ancestors:
            traced.append(Learnt(checkpoint, own.get(checkpoint, 0), num_ancestors))
    return traced


def list_ancestry(checkpoint: str, origins: Origins) -> list[str]:
    """The checkpoint, its parent, that one's parent and so on, as far as is known."""
    return _walk(checkpoint, lambda each: origins[each].parent if each in origins else None)


def list_taught_by(checkpoint: str, origins: Origins) -> list[str]:
    """The checkpoint, and those whose rows are in its weights through what its round, and theirs, began from."""
    return _walk(checkpoint, lambda each: _find_start(origins[each]) if each in origins else None)


def _walk(checkpoint: str, find_next: Callable[[str], str | None]) -> list[str]:
    chain = [checkpoint]
    while (following := find_next(chain[-1])) and following not in chain:
        chain.append(following)
    return chain


def _find_start(origin: Origin) -> str | None:
    """Id of the checkpoint whose weights a round began from; None for the base."""
    match origin.start:
        case "base":
            return None
        case "reference":
            return origin.reference
        case _:
            return origin.parent


def find_reference(checkpoint: str, origins: Origins, here: Collection[str]) -> str | None:
    """The newest SFT checkpoint that was promoted, of those in `here`: in the ancestry of the one that serves, as only promoted
    ones are.

    None: the base is the reference.
    """
    known = [each for each in list_ancestry(checkpoint, origins) if each in origins and each in here]
    return next((each for each in known if origins[each].kind == "sft"), None)


def list_needed(database: sa.Engine, published: Sequence[Published], stable_digest: str) -> frozenset[str]:
    """Ids of the checkpoints that learning needs besides those that may serve.

    Number 0, beside which every later one is judged; stable's reference; and on the way from stable to it those whose
    origins only their directories tell.
    """
    needed = {each.manifest.id for each in published if each.manifest.number == 0}
    stable = next((each.manifest.id for each in published if each.manifest.digest == stable_digest), None)
    if stable is None:
        return frozenset(needed)
    with database.connect() as connection:
        recorded, origins = _load_recorded(connection), load_origins(connection, published)
    reference = find_reference(stable, origins, {each.manifest.id for each in published})
    if reference is not None:
        ancestry = list_ancestry(stable, origins)
        needed |= {each for each in ancestry[: ancestry.index(reference)] if each not in recorded} | {reference}
    return frozenset(needed)
