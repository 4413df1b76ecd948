"""Keeps the reward model current and its state on disk in step with the inbox's marks.

The state says which preferences its last update used, and is renamed into place before they are marked: after a crash
between the two, the marks are made good from it. So every preference counts once as new. A state that does not load is
set aside, never deleted, and the one before it is taken. The optimizer's moments are not kept.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from feedback.database import Writer
from feedback.faults import reach
from feedback.inbox import mark_used, metadata
from feedback.manifest import fsync_directory
from feedback.outages import describe_error
from trainer.run import preferences
from trainer.run.checkpoints import fsync_files
from trainer.run.quarantine import Quarantine
from trainer.run.reporter import Reporter, describe_metrics
from trainer.settings import RewardSection
from trainer.text.pairs import count_replays, draw_sample

if TYPE_CHECKING:
    from trainer.learn.reward import RewardModel

log = logging.getLogger("trainer.learn.reward")

updates = sa.Table(
    "reward_updates",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("metrics", sa.String, nullable=False),
)
UNFINISHED = ".unfinished"
SET_ASIDE = "unreadable-"  # begins the name of a state that did not load
MAX_HELD_OUT = 2000  # the newest held-out pairs that judge the reward model


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
        quarantine: Quarantine,
    ) -> None:
        self.reward, self._database, self._writer = reward, database, writer
        self._directory, self._settings, self._seed = directory, settings, seed
        self._quarantine = quarantine
        self._unsettled: Update | None = None
        self._loaded: Path | None = None

    def restore(self) -> None:
        """Take up the newest state that loads; without any, begin anew with every preference unused."""
        self._directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._directory / UNFINISHED, ignore_errors=True)
        for state in reversed(list_states(self._directory)):
            try:
                done = read_uses(state)
                self.reward.load(state)
            except Exception as error:  # whatever a damaged disk can do: the preferences are still there
                self._set_aside(state, error)
                continue
            self._loaded = state
            self._writer.run(partial(self._take_up, done=done)).result()
            log.info("reward model %d is restored", self.reward.version)
            return
        self._writer.run(self._begin_anew).result()

    def _set_aside(self, state: Path, error: Exception) -> None:
        aside = self._directory / f"{SET_ASIDE}{state.name}-{time.time_ns()}"
        state.rename(aside)
        fsync_directory(self._directory)
        log.error("%s cannot be loaded and is now %s: %s", state.name, aside.name, describe_error(error))

    def _take_up(self, connection: sa.Connection, done: Update) -> None:
        """Undo the marks of updates whose states are set aside, and make good those of the one that is restored."""
        lost = updates.c.version > self.reward.version
        for version in connection.execute(sa.select(updates.c.version).where(lost)).scalars().all():
            for aside in sorted(self._directory.glob(f"{SET_ASIDE}{name_state(version)}-*"))[-1:]:
                try:
                    undone = read_uses(aside)
                except Exception as error:  # part of the damage: its preferences stay marked as used
                    log.warning("%s does not say what it used: %s", aside.name, describe_error(error))
                else:
                    preferences.forget_uses_of(connection, undone.new, undone.replayed)
        connection.execute(sa.delete(updates).where(lost))
        self._mark(connection, done)

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
            reject = self._quarantine.add
            new = preferences.load_unused(connection, self._settings.update_every_preferences, reject)
            replayable = preferences.list_replayable(connection, self._settings.max_replays) if new else []
            num_replays = count_replays(len(new), self._settings.replay_share)
            replayed = preferences.load_ids(connection, draw_sample(replayable, num_replays, rng), reject)
        metrics = self.reward.update([pair for _, pair in new], [pair for _, pair in replayed]) if new else {}
        if metrics:
            self._unsettled = Update(self._list_used(new), self._list_used(replayed), metrics)
        self._settle()
        return metrics

    def _list_used(self, rows: list[preferences.Row]) -> list[int]:
        """Ids of the rows that were learnt from."""
        return [row_id for row_id, pair in rows if not self._quarantine.is_pending(pair.event_id)]

    def _settle(self) -> None:
        """Save and mark the last update, if that failed before: the model has learnt from its pairs and must not again."""
        self._quarantine.flush()
        if (done := self._unsettled) is None:
            return
        if not (self._directory / name_state(self.reward.version)).exists():
            self._save(done.new, done.replayed)
        reach("reward.saved")
        self._writer.run(lambda connection: self._mark(connection, done)).result()
        self._unsettled = None

    def measure(self) -> tuple[int, int]:
        """(correct, total) on the held-out decisive pairs."""
        with self._database.connect() as connection:
            rows = preferences.load_held_out(connection, MAX_HELD_OUT, self._quarantine.add)
        measured = self.reward.accuracy([pair for _, pair in rows])
        self._quarantine.flush()
        return measured

    def _save(self, new: list[int], replayed: list[int]) -> None:
        directory = self._directory / UNFINISHED
        shutil.rmtree(directory, ignore_errors=True)
        self.reward.save(directory)
        (directory / "used.json").write_text(json.dumps({"new": new, "replayed": replayed}))
        fsync_files(directory)
        directory.rename(self._directory / name_state(self.reward.version))
        fsync_directory(self._directory)
        for old in list_states(self._directory)[:-2]:
            if old != self._loaded:  # it is known to load; the newer ones are not yet
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


def name_state(version: int) -> str:
    """The directory of the state after this update."""
    return f"v-{version:06d}"


def list_states(directory: Path) -> list[Path]:
    """Saved states, oldest first."""
    return sorted(path for path in directory.iterdir() if path.name.startswith("v-"))


def update_reward(keeper: RewardKeeper, reporter: Reporter) -> None:
    """One update, and what it came to, shown to whoever looks."""
    if metrics := keeper.update():
        version = keeper.reward.version
        correct, total = measure_reward(keeper, reporter)
        measured = {**metrics, "accuracy_heldout": correct / total} if total else metrics
        reporter.curves.add("reward", measured, version)
        log.info("reward model %d: %s", version, describe_metrics(measured))


def measure_reward(keeper: RewardKeeper, reporter: Reporter) -> tuple[int, int]:
    """(correct, total) on held-out choices, shown to whoever looks."""
    correct, total = keeper.measure()
    reporter.show_reward(keeper.reward.version, correct, total)
    return correct, total


def read_uses(state: Path) -> Update:
    """Which preferences the last update of a saved state used. Raises what a damaged file raises."""
    used: dict[str, list[int]] = json.loads((state / "used.json").read_text())
    return Update([int(row_id) for row_id in used["new"]], [int(row_id) for row_id in used["replayed"]], {})
