"""Gives checkpoints their numbers, publishes adapter "policy" as one, and knows which are there.

One instance a process, used by the learner alone. A number is free if neither a directory, nor a round on record, nor
the gateway has it, nor any trainer of the same database ever reserved it (numbers.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from feedback.database import Writer
from feedback.manifest import Probe
from feedback.signing import SigningKey
from trainer.run import numbers, rounds
from trainer.run.publish import checkpoints
from trainer.run.publish.registry import Gateway, GatewayRefused, GatewayUnavailable

log = logging.getLogger("trainer.run.publish.publisher")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the manifest says of adapter "policy". event_ids: what it learnt from; watermark: next offset by partition."""

    parent: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    event_ids: Sequence[str] = ()
    watermark: Mapping[int, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


class Publisher:
    """Publishes into `root`. save_policy writes adapter "policy"; on_published is called after each publication.

    fence: under which this trainer works. Make it once this trainer works, and no earlier.
    """

    def __init__(
        self,
        root: Path,
        save_policy: Callable[[Path], None],
        database: sa.Engine,
        writer: Writer,
        gateway: Gateway,
        *,
        fence: int = 0,
        base_digest: str,
        rank: int,
        make_probe: Callable[[], Probe],
        on_published: Callable[[], None],
        signing_key: SigningKey | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.root, self._save_policy, self._database, self._gateway = root, save_policy, database, gateway
        self._writer, self._fence = writer, fence
        self._base_digest, self._rank = base_digest, rank
        self._make_probe, self._on_published = make_probe, on_published
        self._signing_key, self._now = signing_key, now
        for name in checkpoints.clean_unfinished(root):
            log.info("removed %s, left by a crash", name)
        self.published = self._settle()

    def publish(self, trained: Trained) -> checkpoints.Published:
        """Publish adapter "policy" under the next number."""
        draft = checkpoints.Draft(
            number=self._reserve_number(trained.settings.get("round")),
            parent=trained.parent,
            base_digest=self._base_digest,
            rank=self._rank,
            probe=self._make_probe(),
            watermark=trained.watermark,
            num_preferences=len(trained.event_ids),
            settings={**trained.settings, "preference_ids_digest": checkpoints.digest_ids(trained.event_ids)},
            metrics=rounds.keep_finite(trained.metrics),  # else no JSON
        )
        published = checkpoints.publish_checkpoint(self.root, draft, self._save_policy, self._now(), self._signing_key)
        self._writer.run(lambda connection: numbers.confirm(connection, draft.number, published.manifest.id)).result()
        self.published.append(published)
        self._on_published()
        return published

    def find(self, checkpoint: str | None, digest: str | None) -> checkpoints.Published | None:
        """The directory of a checkpoint, by its id or by its digest: an A/A rollout serves old weights by a new id."""
        for published in self.published:
            if checkpoint == published.manifest.id or (digest and digest == published.manifest.digest):
                return published
        return None

    def find_of_round(self, number: int) -> checkpoints.Published | None:
        """The checkpoint that a round published."""
        return next((p for p in self.published if p.manifest.settings.get("round") == number), None)

    def name_first(self) -> str:
        """The id of checkpoint 0, "checkpoint 0" where its directory is gone."""
        return next((each.manifest.id for each in self.published if each.manifest.number == 0), "checkpoint 0")

    def list_counting(self) -> list[checkpoints.Published]:
        """What is in the directory now, less what a trainer published that had lost its lease. Any thread may."""
        found = {name_published(each): each for each in checkpoints.list_published(self.root, self._base_digest)}
        with self._database.connect() as connection:
            without = numbers.list_uncounted(connection, found)
        return [each for name, each in found.items() if name not in without]

    def _settle(self) -> list[checkpoints.Published]:
        found = [name_published(each) for each in checkpoints.list_published(self.root, self._base_digest)]
        self._writer.run(lambda connection: numbers.settle(connection, found)).result()
        return self.list_counting()

    def _reserve_number(self, round_number: int | None) -> int:
        """Raises LeaseLost: nothing is published then."""
        with self._database.connect() as connection:
            taken = rounds.list_checkpoint_numbers(connection)
        try:  # a trainer that lost its directory must not give a number that the gateway knows
            taken += [checkpoint.number for checkpoint in self._gateway.list_checkpoints()]
        except (GatewayUnavailable, GatewayRefused) as error:
            log.info("numbering without the gateway: %s", error)
        taken.append(checkpoints.next_number(self.root) - 1)
        return self._writer.run(
            lambda connection: numbers.reserve(connection, round_number, self._fence, taken)
        ).result()


def name_published(published: checkpoints.Published) -> numbers.Named:
    """What numbers are kept by."""
    manifest = published.manifest
    return numbers.Named(manifest.number, manifest.id, manifest.settings.get("round"))
