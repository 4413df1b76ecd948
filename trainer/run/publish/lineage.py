"""Which rows each checkpoint learnt from, and which checkpoints descend from which.

Answers what erasure asks: which checkpoints learnt from a person's rows, themselves or through what they began from. Rows
are named by event id and by whose they are, a keyed hash: the answer stays when the rows are erased. Removes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from feedback.database import split_parameters
from feedback.inbox import demonstrations, metadata, preferences, signals
from trainer.run.publish.checkpoints import Published

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


def trace_learnt(own: dict[str, int], published: Iterable[Published]) -> list[Learnt]:
    """Every checkpoint that learnt from the rows counted in `own`, by itself or by what it began from; oldest first.

    A checkpoint whose round began from the base learnt nothing from its parent.
    """
    by_id = {each.manifest.id: each for each in published}
    traced = []
    for checkpoint in sorted({*by_id, *own}):
        taught = list_taught_by(by_id[checkpoint], by_id.values())[1:] if checkpoint in by_id else []
        num_ancestors = sum(1 for each in taught if own.get(each.manifest.id))
        if own.get(checkpoint) or num_ancestors:
            traced.append(Learnt(checkpoint, own.get(checkpoint, 0), num_ancestors))
    return traced


def list_ancestry(checkpoint: Published, published: Iterable[Published]) -> list[Published]:
    """The checkpoint, its parent, that one's parent and so on, as far as their directories are here."""
    by_id = {each.manifest.id: each for each in published}
    chain = [checkpoint]
    while (parent := by_id.get(chain[-1].manifest.parent or "")) and parent not in chain:
        chain.append(parent)
    return chain


def list_taught_by(checkpoint: Published, published: Iterable[Published]) -> list[Published]:
    """The checkpoint, and those whose rows are in its weights through what its round, and theirs, began from."""
    by_id = {each.manifest.id: each for each in published}
    taught = [checkpoint]
    while (origin := by_id.get(_find_origin(taught[-1]))) and origin not in taught:
        taught.append(origin)
    return taught


def _find_origin(checkpoint: Published) -> str:
    """Id of the checkpoint whose weights a round began from; "" for the base."""
    manifest = checkpoint.manifest
    match manifest.settings.get("start", "stable"):
        case "base":
            return ""
        case "reference":
            return str(manifest.settings.get("reference") or "")
        case _:
            return manifest.parent or ""


def find_reference(parent: Published, published: Iterable[Published]) -> Published | None:
    """The newest SFT checkpoint that was promoted: in the ancestry of the one that serves, as only promoted ones are.

    None: the base is the reference.
    """
    ancestry = list_ancestry(parent, published)
    return next((each for each in ancestry if each.manifest.settings.get("kind") == "sft"), None)


def list_needed(published: Sequence[Published], stable_digest: str) -> frozenset[str]:
    """Ids of the checkpoints that learning needs besides those that may serve.

    Number 0, beside which every later one is judged; and from stable to its reference, for that is how it is found.
    """
    needed = {each.manifest.id for each in published if each.manifest.number == 0}
    stable = next((each for each in published if each.manifest.digest == stable_digest), None)
    reference = None if stable is None else find_reference(stable, published)
    if stable is not None and reference is not None:
        ancestry = list_ancestry(stable, published)
        needed |= {each.manifest.id for each in ancestry[: ancestry.index(reference) + 1]}
    return frozenset(needed)
