"""Comparisons that were shown, the choices made of them, and the outbox on the way to the log.

Promises: a choice and its outbox row commit together, one choice per comparison for ever. Functions take a connection
inside a transaction of the caller's. Does not verify tokens.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from feedback.answer_traits import compare_candidates
from feedback.database import insert_or_ignore, metadata
from feedback.errors import ConflictingChoice, ExpiredComparison, UnknownComparison
from feedback.events import PREFERRED, Choice, Comparison, Event, Preferred, encode_event, encode_headers
from feedback.outbox import declare_outbox

comparisons = sa.Table(
    "comparisons",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("share", sa.Text, nullable=False, server_default=""),  # events.Share
    sa.Column("rollout", sa.Text),
    sa.Column("canary_first", sa.Boolean),  # of a duel: the canary's answer was shown first
    sa.Column("finished_first", sa.Text),  # "first" or "second", where it was measured
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # events.Comparison as JSON; empty once it was forgotten
    sa.Column(
        "tags", sa.Text
    ),  # of a duel: what the app said of the request, as JSON by name; empty if it said nothing
    sa.Column("differences", sa.Text),  # of a duel: the canary's answer less stable's, as JSON by trait
    sa.Column("screened", sa.Text),  # of a duel: what a harm screen says (screening.py); empty until it has looked
    sa.Index("comparisons_by_rollout", "rollout", "asked", "created_at"),
    sa.Index("comparisons_by_time", "created_at"),
    sa.Index(
        "comparisons_remembered", "expires_at",
        sqlite_where=sa.text("length(body) > 0"), postgresql_where=sa.text("length(body) > 0"),
    ),
)  # fmt: skip

_IS_SKIP = sa.text("preferred = 'skip'")
choices = sa.Table(
    "choices",
    metadata,
    sa.Column("comparison_id", sa.Text, sa.ForeignKey("comparisons.id"), primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("preferred", sa.Text, nullable=False),
    sa.Column("strength", sa.Double),
    sa.Column("harmful", sa.Boolean, nullable=False),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("chosen_at", sa.Double, nullable=False),
    sa.Index("choices_skipped", "chosen_at", sqlite_where=_IS_SKIP, postgresql_where=_IS_SKIP),
)

outbox = declare_outbox("outbox", metadata)
is_remembered = sa.func.length(comparisons.c.body) > sa.text("0")  # written as in the index, which serves it then


_CHOICE = "prefloop.choice.v1"  # in events.BODIES
_MAX_TAG = 64  # characters
_STANDING = (
    sa.select(
        comparisons.c.id,
        comparisons.c.body,
        comparisons.c.canary_first,
        comparisons.c.created_at,
        comparisons.c.expires_at,
        *(choices.c[name] for name in ("preferred", "strength", "harmful", "channel", "chosen_at")),
    )
    .select_from(comparisons.outerjoin(choices, choices.c.comparison_id == comparisons.c.id))
    .where(comparisons.c.id.in_(sa.bindparam("ids", expanding=True)))
)
_INSERT = postgresql.insert(choices).on_conflict_do_nothing().returning(choices.c.comparison_id)


@dataclass(frozen=True, kw_only=True)
class NewChoice:
    """What is said of a comparison, `at` epoch seconds. Raises ValueError for what makes no sense.

    is_published: it goes to the log, hence to the trainer.
    """

    comparison_id: str
    preferred: Preferred
    strength: float | None
    harmful: bool
    channel: str
    at: float
    is_published: bool = True

    def __post_init__(self) -> None:
        if self.preferred not in PREFERRED:
            raise ValueError(f"preferred must be one of {', '.join(PREFERRED)}")
        if self.strength is not None and not math.isfinite(self.strength):
            raise ValueError("strength must be a finite number")


class _ChoiceBody(msgspec.Struct, frozen=True, kw_only=True):
    """events.Choice around a comparison that is JSON already: it is neither read nor written again."""

    comparison: msgspec.Raw
    preferred: Preferred
    strength: float | None
    harmful: bool
    seconds_to_decide: float
    channel: str
    chosen_at: float


@dataclass(frozen=True)
class _Fresh:
    """A choice to be stored."""

    new: NewChoice
    body: _ChoiceBody
    value: bytes  # the body as JSON


@dataclass(frozen=True)
class StoredChoice:
    """The choice that stands, and whether this call made it. canary_first: of a duel, else None."""

    status: Literal["created", "replayed"]
    body: bytes  # events.Choice as JSON; empty where what was shown has been forgotten
    canary_first: bool | None = None

    @property
    def choice(self) -> Choice:
        """The choice, with its comparison."""
        return msgspec.json.decode(self.body, type=Choice)


def store_comparison(connection: sa.Connection, comparison: Comparison) -> None:
    """Store a comparison before its token leaves the house. Storing the same id again changes nothing."""
    differences = compare_candidates(comparison.first, comparison.second)
    is_duel = differences is not None
    insert_or_ignore(
        connection,
        comparisons,
        {
            "id": comparison.id,
            "policy": comparison.policy,
            "app": comparison.app,
            "user": comparison.user,
            "asked": comparison.asked,
            "share": comparison.share,
            "rollout": comparison.rollout,
            "canary_first": comparison.first.arm == "canary" if is_duel else None,
            "finished_first": comparison.finished_first,
            "created_at": comparison.created_at,
            "expires_at": comparison.expires_at,
            "body": msgspec.json.encode(comparison),
            "tags": _encode_tags(comparison) if is_duel else None,
            "differences": None if differences is None else msgspec.json.encode(differences).decode(),
        },
    )


def _encode_tags(comparison: Comparison) -> str | None:
    """The tags by which evidence is read: a value that is longer is no name of a kind."""
    tags = {name: value for name, value in sorted(comparison.tags.items()) if 0 < len(value) <= _MAX_TAG}
    return msgspec.json.encode(tags).decode() if tags else None


def delete_comparisons(connection: sa.Connection, ids: Collection[str]) -> None:
    """Take out comparisons that were never shown, and so never chosen from."""
    connection.execute(sa.delete(comparisons).where(comparisons.c.id.in_(ids)))


def load_comparison(connection: sa.Connection, comparison_id: str) -> Comparison:
    """Raises UnknownComparison if the id was never shown."""
    body = connection.execute(sa.select(comparisons.c.body).where(comparisons.c.id == comparison_id)).scalar()
    if body is None:
        raise UnknownComparison(comparison_id)
    return msgspec.json.decode(body, type=Comparison)


def record_choices(
    connection: sa.Connection, new: Sequence[NewChoice], *, source: str = "prefloop/gateway"
) -> list[StoredChoice | Exception]:
    """Store choices and their outbox rows, in their order; a choice made again replays the stored one, however late.

    The result of each, or UnknownComparison, ExpiredComparison after expiry, ConflictingChoice if another one stands. A
    few statements for all of them, so that a hundred people choose at the price of one.
    """
    known = _load_standing(connection, [each.comparison_id for each in new])
    fresh: dict[str, _Fresh] = {}
    for each in new:
        row = known.get(each.comparison_id)
        if row is None or row.chosen_at is not None or each.at > row.expires_at:
            continue
        if each.comparison_id not in fresh:
            body = _build_body(row, each)
            fresh[each.comparison_id] = _Fresh(each, body, msgspec.json.encode(body))
    made = _insert_choices(connection, fresh, source)
    if len(made) < len(fresh):  # another process was faster
        known |= _load_standing(connection, [each for each in fresh if each not in made])
    return [_answer(each, known.get(each.comparison_id), made.get(each.comparison_id)) for each in new]


def _load_standing(connection: sa.Connection, ids: Sequence[str]) -> dict[str, sa.Row[Any]]:
    """Comparisons with the choices made of them, if any."""
    rows = connection.execute(_STANDING, {"ids": list(ids)})
    return {row.id: row for row in rows}


def _build_body(row: sa.Row[Any], said: NewChoice | sa.Row[Any]) -> _ChoiceBody:
    """row: the comparison; said: what was said of it now, or the stored row that says it."""
    at = said.at if isinstance(said, NewChoice) else said.chosen_at
    return _ChoiceBody(
        comparison=msgspec.Raw(row.body),
        preferred=said.preferred,
        strength=said.strength,
        harmful=said.harmful,
        seconds_to_decide=max(0.0, at - row.created_at),
        channel=said.channel,
        chosen_at=at,
    )


def _answer(new: NewChoice, row: sa.Row[Any] | None, made: _Fresh | None) -> StoredChoice | Exception:
    """row: the comparison with the choice that another transaction made of it; made: the one that this one did."""
    if row is None:
        return UnknownComparison(new.comparison_id)
    if made is None and row.chosen_at is None:
        return ExpiredComparison(new.comparison_id)
    body = _build_body(row, row) if made is None else made.body
    if (body.preferred, body.strength, body.harmful) != (new.preferred, new.strength, new.harmful):
        return ConflictingChoice(new.comparison_id)
    is_mine = made is not None and made.new is new
    value = (msgspec.json.encode(body) if row.body else b"") if made is None else made.value
    return StoredChoice("created" if is_mine else "replayed", value, row.canary_first)


def _insert_choices(connection: sa.Connection, fresh: dict[str, _Fresh], source: str) -> dict[str, _Fresh]:
    """Store choices and their outbox rows, but those that another process has stored meanwhile; return the others."""
    if not fresh:
        return {}
    rows = [
        {
            "comparison_id": comparison_id,
            "event_id": uuid.uuid4().hex,
            "preferred": each.body.preferred,
            "strength": each.body.strength,
            "harmful": each.body.harmful,
            "channel": each.body.channel,
            "chosen_at": each.body.chosen_at,
        }
        for comparison_id, each in fresh.items()
    ]
    if connection.dialect.name == "sqlite":  # nobody else writes since this transaction began
        connection.execute(sa.insert(choices), rows)
        made = fresh
    else:
        inserted = set(connection.execute(_INSERT, rows).scalars())
        made = {comparison_id: each for comparison_id, each in fresh.items() if comparison_id in inserted}
    event_ids = {row["comparison_id"]: row["event_id"] for row in rows}
    published = [
        _build_outbox_row(str(event_ids[key]), key, each, source) for key, each in made.items() if each.new.is_published
    ]
    if published:
        connection.execute(sa.insert(outbox), published)
    return made


def _build_outbox_row(event_id: str, key: str, fresh: _Fresh, source: str) -> dict[str, Any]:
    headers = encode_headers(event_id, _CHOICE, source=source, key=key, time=fresh.body.chosen_at)
    return {
        "event_id": event_id,
        "key": key.encode(),
        "headers": msgspec.msgpack.encode(headers),
        "value": fresh.value,
        "created_at": fresh.body.chosen_at,
    }


def add_to_outbox(connection: sa.Connection, event: Event) -> None:
    """Have the relay move an event to the log, once this transaction has committed."""
    headers, value = encode_event(event)
    connection.execute(
        sa.insert(outbox).values(
            event_id=event.id,
            key=event.key.encode(),
            headers=msgspec.msgpack.encode(headers),
            value=value,
            created_at=event.time,
        )
    )


def count_outbox(connection: sa.Connection) -> int:
    """Rows that wait for the log."""
    return connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one()
