"""Keeps the reward model current and its state on disk in step with the inbox's marks.

The state says which preferences its last update used, and is renamed into place before they are marked: after a crash
between the two, the marks are made good from it. So every preference counts once as new. The optimizer's moments are
not kept.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from feedback.database import Writer
from feedback.faults import reach
from feedback.inbox import mark_used, metadata
from feedback.manifest import fsync_directory
from trainer import preferences
from trainer.checkpoints import fsync_files
from trainer.dataset import count_replays, draw_sample
from trainer.settings import RewardSection

if TYPE_CHECKING:
    from trainer.reward import RewardModel

log = logging.getLogger("trainer.reward")

updates = sa.Table(
    "reward_updates",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("metrics", sa.String, nullable=False),
)
UNFINISHED = ".unfinished"
MAX_HELD_OUT = 2000  # the newest held-out pairs that judge the reward model


class RewardStateLost(Exception):
    """The saved state was unreadable and is removed: start the process again, and the model begins anew."""


@dataclass(frozen=True)
class Update:
    """Which preferences an update learnt from, by their ids, and what it measured."""

    new: list[int]
    replayed: list[int]
    metrics: dict[str, float]


class RewardKeeper:
    """Updates, saves and restores one reward model. directory is of one base: another base has another."""

    def __init__(
        self,
        reward: RewardModel,
        database: sa.Engine,
        writer: Writer,
        directory: Path,
        settings: RewardSection,
        seed: int,
    ) -> None:
        self.reward, self._database, self._writer = reward, database, writer
        self._directory, self._settings, self._seed = directory, settings, seed
        self._unsettled: Update | None = None

    def restore(self) -> None:
        """Take up the newest state, or begin anew with every preference unused."""
        self._directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._directory / UNFINISHED, ignore_errors=True)
        saved = list_states(self._directory)
        try:
            used = self._load(saved[-1]) if saved else None
        except Exception as error:  # whatever a damaged disk can do: the preferences are still there
            log.error("%s cannot be read, the reward model begins anew: %s", saved[-1], error)
            shutil.rmtree(self._directory)
            raise RewardStateLost(str(error)) from error
        if used is None:
            self._writer.run(self._begin_anew).result()
            return
        done = Update(used["new"], used["replayed"], {})
        self._writer.run(lambda connection: self._mark(connection, done)).result()
        log.info("reward model %d is restored", self.reward.version)

    def _load(self, state: Path) -> dict[str, list[int]]:
        self.reward.load(state)
        used: dict[str, list[int]] = json.loads((state / "used.json").read_text())
        return used

    def is_due(self) -> bool:
        return self.count_due() > 0

    def count_due(self) -> int:
        """How many whole updates wait."""
        with self._database.connect() as connection:
            return preferences.count_unused(connection) // self._settings.update_every_preferences

    def update(self) -> dict[str, float]:
        """One update with what is new, at most a batch of it. Returns {} if nothing is new."""
        self._settle()
        rng = random.Random(f"{self._seed}-reward-{self.reward.version}")
        with self._database.connect() as connection:
            new = preferences.load_unused(connection, self._settings.update_every_preferences)
            if not new:
                return {}
            replayable = preferences.list_replayable(connection, self._settings.max_replays)
            num_replays = count_replays(len(new), self._settings.replay_share)
            replayed = preferences.load_ids(connection, draw_sample(replayable, num_replays, rng))
        metrics = self.reward.update([pair for _, pair in new], [pair for _, pair in replayed])
        self._unsettled = Update([row[0] for row in new], [row[0] for row in replayed], metrics)
        self._settle()
        return metrics

    def _settle(self) -> None:
        """Save and mark the last update, if that failed before: the model has learnt from its pairs and must not again."""
        if (done := self._unsettled) is None:
            return
        if not (self._directory / f"v-{self.reward.version:06d}").exists():
            self._save(done.new, done.replayed)
        reach("reward.saved")
        self._writer.run(lambda connection: self._mark(connection, done)).result()
        self._unsettled = None

    def measure(self) -> tuple[int, int]:
        """(correct, total) on the held-out decisive pairs."""
        with self._database.connect() as connection:
            pairs = [pair for _, pair in preferences.load_held_out(connection, MAX_HELD_OUT)]
        return self.reward.accuracy(pairs)

    def _save(self, new: list[int], replayed: list[int]) -> None:
        directory = self._directory / UNFINISHED
        shutil.rmtree(directory, ignore_errors=True)
        self.reward.save(directory)
        (directory / "used.json").write_text(json.dumps({"new": new, "replayed": replayed}))
        fsync_files(directory)
        directory.rename(self._directory / f"v-{self.reward.version:06d}")
        fsync_directory(self._directory)
        for old in list_states(self._directory)[:-2]:
            shutil.rmtree(old)

    def _mark(self, connection: sa.Connection, done: Update) -> None:
        known = sa.select(updates.c.version).where(updates.c.version == self.reward.version)
        if connection.execute(known).first() is None:
            mark_used(connection, done.new, as_new=True)
            mark_used(connection, done.replayed, as_new=False)
            connection.execute(sa.insert(updates).values(version=self.reward.version, metrics=json.dumps(done.metrics)))

    def _begin_anew(self, connection: sa.Connection) -> None:
        preferences.forget_uses(connection)
        connection.execute(sa.delete(updates))


def list_states(directory: Path) -> list[Path]:
    """Saved states, oldest first."""
    return sorted(path for path in directory.iterdir() if path.name.startswith("v-"))
