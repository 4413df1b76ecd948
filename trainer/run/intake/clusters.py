"""Places rows among the clusters of near-duplicate prompts, and so among those that are learnt from and those that judge.

Promises: a cluster's split is fixed by the row that began it, in the order of arrival and in that row's transaction; a
row whose prompt or whose conversation judges is not learnt from. A row whose answers a model picked never judges: it begins
a cluster that is learnt from, and is of no use in one that judges. A band leads to one cluster, the first, so that the
work for a row does not grow with the number of clusters. What is similar is trainer/math/splits's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, cast

import msgspec
import sqlalchemy as sa

from feedback.database import insert_missing, split_parameters
from feedback.events import Choice, Demonstration, Signal
from feedback.inbox import (
    UNUSED,
    Arrival,
    Placement,
    demonstrations,
    describe_arrival,
    preferences,
    prompt_bands,
    prompt_clusters,
    signals,
)
from trainer.math.splits import (
    MIN_CHOICES,
    Split,
    are_similar,
    choose_split,
    choose_stricter,
    hash_key,
    list_bands,
    number_prompt,
    sign_prompt,
)

_LOCK = 0x70726567  # any number that nobody else takes


@dataclass(frozen=True)
class _Cluster:
    number: int
    split: Split
    signature: bytes


@dataclass
class _Known:
    """The clusters that a batch has to do with, by what they are found by; and what is new of them."""

    by_band: dict[int, _Cluster]
    new_clusters: list[dict[str, Any]] = field(default_factory=list)
    new_bands: list[dict[str, Any]] = field(default_factory=list)

    def add(self, band: int, cluster: _Cluster) -> None:
        if band not in self.by_band:
            self.by_band[band] = cluster
            self.new_bands.append({"band": band, "cluster": cluster.number})


def place_rows(connection: sa.Connection, arrivals: Sequence[Arrival]) -> list[Placement]:
    """The clusters and splits of new rows (a feedback.inbox.Place). Run it in the transaction that stores them."""
    if connection.dialect.name == "postgresql":  # two readers must not both begin a cluster; SQLite has one writer
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    prompts = {each.prompt_key: each.messages for each in arrivals if each.messages}
    exact = {number_prompt(key) for key in prompts}
    exact |= {_conversation_band(arrival) for arrival in arrivals if arrival.conversation}
    known = _Known(_load(connection, exact) | _load_begun_by(connection, exact))
    signatures = {
        key: sign_prompt(messages) for key, messages in prompts.items() if number_prompt(key) not in known.by_band
    }
    bands = {key: list_bands(signature) for key, signature in signatures.items()}
    known.by_band.update(_load(connection, {band for each in bands.values() for band in each}))
    num_choices = _count_choices(connection)
    placements = []
    for arrival in arrivals:
        placements.append(_place(arrival, known, signatures, bands, num_choices))
        num_choices += arrival.is_choice
    insert_missing(connection, prompt_clusters, known.new_clusters)
    insert_missing(connection, prompt_bands, sorted(known.new_bands, key=itemgetter("band")))  # neighbours share a page
    return placements


def _place(
    arrival: Arrival,
    known: _Known,
    signatures: dict[str, bytes],
    bands: dict[str, list[int]],
    num_choices: int,
) -> Placement:
    conversation_band = _conversation_band(arrival) if arrival.conversation else 0
    conversation = known.by_band.get(conversation_band) if arrival.conversation else None
    fixed = cast("Split | None", arrival.split or None)
    if not arrival.messages:
        return Placement(0, fixed or _decide(conversation.split if conversation else "train", arrival))
    number = number_prompt(arrival.prompt_key)
    cluster = known.by_band.get(number)
    if cluster is None:
        signature, of_prompt = signatures[arrival.prompt_key], bands[arrival.prompt_key]
        found = (known.by_band.get(band) for band in of_prompt)
        cluster = next((each for each in found if each and are_similar(each.signature, signature)), None)
        if cluster is None:
            begun = fixed or (conversation.split if conversation else _begin(arrival, number, num_choices))
            cluster = _Cluster(number, begun, signature)
            known.new_clusters.append({"cluster": number, "split": begun, "signature": signature})
            known.by_band[number] = cluster
            for band in of_prompt:
                known.add(band, cluster)
        known.add(number, cluster)
    if arrival.conversation:
        known.add(conversation_band, cluster)
    split = cluster.split if conversation is None else choose_stricter(cluster.split, conversation.split)
    return Placement(cluster.number, fixed or _decide(split, arrival))


def _begin(arrival: Arrival, number: int, num_choices: int) -> Split:
    if not arrival.may_judge:
        return "train"
    return choose_split(number, num_choices, is_demonstration=arrival.is_demonstration)


def _decide(split: Split, arrival: Arrival) -> str:
    return split if arrival.may_judge or split == "train" else UNUSED


def has_unplaced(connection: sa.Connection) -> bool:
    """Whether a row waits for `place_undecided`."""
    tables = (preferences, signals, demonstrations)
    waiting = (sa.select(table.c.id).where(table.c.cluster.is_(None)).limit(1) for table in tables)
    return any(connection.execute(query).first() is not None for query in waiting)


def place_undecided(connection: sa.Connection, limit: int = 500) -> int:
    """Place rows that were stored without it (a replay, a retried dead letter, an older release), oldest first.

    Returns how many; none are left once it returns 0. A split that was decided before stays.
    """
    num_placed = 0
    for table, column, kind in (
        (preferences, preferences.c.choice_json, Choice),
        (signals, signals.c.signal_json, Signal),
        (demonstrations, demonstrations.c.demonstration_json, Demonstration),
    ):
        query = sa.select(table.c.id, table.c.prompt_key, table.c.split, column.label("body"))
        rows = connection.execute(query.where(table.c.cluster.is_(None)).order_by(table.c.id).limit(limit)).all()
        if not rows:
            continue
        arrivals = [_read_arrival(row, kind) for row in rows]
        placements = place_rows(connection, arrivals)
        update = sa.update(table).where(table.c.id == sa.bindparam("row_id"))
        connection.execute(
            update.values(cluster=sa.bindparam("number"), split=sa.bindparam("its_split")),
            [
                {"row_id": row.id, "number": placement.cluster, "its_split": placement.split}
                for row, placement in zip(rows, placements, strict=True)
            ],
        )
        num_placed += len(rows)
    return num_placed


def _read_arrival(row: Any, kind: type[Choice | Signal | Demonstration]) -> Arrival:
    try:
        said = msgspec.json.decode(row.body, type=kind)
    except (ValueError, RecursionError):  # damaged: learning will set it aside
        return Arrival("", [], "", is_choice=False, split=row.split or "train")
    return describe_arrival(said, row.prompt_key, row.split)


def _load_begun_by(connection: sa.Connection, numbers: Iterable[int]) -> dict[int, _Cluster]:
    """The clusters that these prompts began."""
    found = {}
    columns = prompt_clusters.c
    query = sa.select(columns.cluster, columns.split, columns.signature)
    for chunk in split_parameters(sorted(numbers)):
        for row in connection.execute(query.where(columns.cluster.in_(chunk))):
            found[row.cluster] = _Cluster(row.cluster, row.split, row.signature)
    return found


def _load(connection: sa.Connection, bands: Iterable[int]) -> dict[int, _Cluster]:
    """The clusters that are found by these bands."""
    columns = prompt_clusters.c
    query = sa.select(prompt_bands.c.band, columns.cluster, columns.split, columns.signature).join(
        prompt_clusters, columns.cluster == prompt_bands.c.cluster
    )
    found = {}
    clusters: dict[int, _Cluster] = {}
    for chunk in split_parameters(sorted(bands)):
        for row in connection.execute(query.where(prompt_bands.c.band.in_(chunk))):
            cluster = clusters.setdefault(row.cluster, _Cluster(row.cluster, row.split, row.signature))
            found[row.band] = cluster
    return found


def _count_choices(connection: sa.Connection) -> int:
    """Choices that were placed, as far as they matter."""
    some = sa.select(preferences.c.id).where(preferences.c.cluster.is_not(None)).limit(MIN_CHOICES).subquery()
    return connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()


def _conversation_band(arrival: Arrival) -> int:
    return hash_key(b"conversation " + arrival.conversation.encode(errors="surrogatepass"))
