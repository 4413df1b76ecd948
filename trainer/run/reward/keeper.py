"""Keeps the reward model current and its states on disk in step with the inbox's marks.

A state says which rows its last update used, and is renamed into place before they are marked: after a crash between the
two, the marks are made good from it. So every row counts once as new. A version is used by rounds only once it is measured
and not worse than the one in use; a refused one goes on learning. The database knows the states by name and by what they used:
where another trainer learnt meanwhile, this one's states are dropped as far as they are not that trainer's, and the marks follow.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from feedback.database import Writer, split_parameters
from feedback.faults import reach
from feedback.inbox import mark_used, metadata
from feedback.outages import describe_error
from trainer.learn.reward.prequential import Count
from trainer.learn.reward.version_gate import Comparison, compare_versions
from trainer.model.memory import release_memory
from trainer.run.intake.erased import ErasedRows
from trainer.run.intake.quarantine import Quarantine
from trainer.run.report.reporter import Reporter, describe_metrics
from trainer.run.reward.lessons import Lessons
from trainer.run.reward.states import (
    Accepted,
    Marks,
    RewardStates,
    Update,
    list_states,
    name_state,
    parse_uses,
    read_uses,
)
from trainer.run.rows import rows
from trainer.run.status.board import RewardView, StyleView
from trainer.sections.reward import RewardSection
from trainer.text.pairs import Pair, Rated
from trainer.text.style import FEATURES

if TYPE_CHECKING:
    from trainer.learn.reward.model import RewardModel

__all__ = ["RewardKeeper", "list_states", "name_state", "read_history", "updates"]

log = logging.getLogger("trainer.learn.reward")

updates = sa.Table(
    "reward_updates",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("metrics", sa.String, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default=""),  # Update.state
    sa.Column("uses", sa.Text, nullable=False, server_default=""),  # Update.describe_uses; "" from before it was kept
)
BULK_UPDATES = 20  # so many updates' worth of new rows are learnt in one pass

Measure = Callable[[tuple[int, int]], dict[str, Any]]
Refuse = Callable[[Mapping[str, Any], Comparison], str]


class RewardKeeper:
    """Updates, saves and restores one reward model. directory is of one base: another base has another.

    edit_weight: of an edit beside a choice; list_frozen_prompts names what is not learnt from (judge/frozen.digest_prompt).
    figures measures the newest version, given (correct, total) on held-out
    choices. refuse says why a version may not follow the one in use, by its figures and beside that one; "" if it may.
    """

    def __init__(
        self,
        reward: RewardModel,
        database: sa.Engine,
        writer: Writer,
        directory: Path,
        settings: RewardSection,
        seed: int,
        policy: str,
        quarantine: Quarantine,
        *,
        edit_weight: float,
        list_frozen_prompts: Callable[[], frozenset[str]],
        figures: Measure,
        refuse: Refuse,
    ) -> None:
        self.reward, self._database, self._writer = reward, database, writer
        self._states, self._settings, self._seed = RewardStates(directory), settings, seed
        self._quarantine, self._figures, self._refuse = quarantine, figures, refuse
        self._policy = policy
        self._lessons = Lessons(
            database, policy, settings, quarantine.add, edit_weight=edit_weight, list_frozen_prompts=list_frozen_prompts
        )
        self._marks = Marks()
        self._erased = ErasedRows(database)
        self._unsettled: Update | None = None
        self._state = ""  # of the newest version
        self._refused = ""

    # States

    def restore(self) -> None:
        """Take up the newest state that loads; without any, begin anew with every row unused."""
        self._states.prepare()
        with self._database.connect() as connection:
            known = {
                row.version: row.state for row in connection.execute(sa.select(updates.c.version, updates.c.state))
            }
        self._states.remove_others(lambda version, used: is_of_chain(version, used, known))
        done = self._states.load_newest(self._load)
        if done is None:
            self._writer.run(self._begin_anew).result()
            return
        self._marks, self._state = done.marks, done.state
        self._writer.run(partial(self._take_up, done=done)).result()
        log.info("reward model %d is restored", self.reward.version)

    def _load(self, state: Path) -> Update:
        """Load a state; returns what its last update used."""
        done = read_uses(state)
        self.reward.load(state)
        return done

    def _take_up(self, connection: sa.Connection, done: Update) -> None:
        """Undo the marks of updates whose states are gone, and make good those of the one that is restored."""
        lost = updates.c.version > self.reward.version
        for row in connection.execute(sa.select(updates.c.version, updates.c.uses).where(lost)).all():
            if (undone := self._find_uses(row.version, row.uses)) is not None:
                rows.forget_uses_of(connection, undone.new, undone.replayed)
        connection.execute(sa.delete(updates).where(lost))
        self._mark(connection, done)

    def _find_uses(self, version: int, stored: str) -> Update | None:
        """What an update used whose state is not here any more; None where nothing says it."""
        if stored:
            return parse_uses(stored)
        for aside in self._states.list_aside(version)[-1:]:
            try:
                return read_uses(aside)
            except Exception as error:  # part of the damage: its preferences stay marked as used
                log.warning("%s does not say what it used: %s", aside.name, describe_error(error))
        return None

    def _begin_anew(self, connection: sa.Connection) -> None:
        rows.forget_uses(connection, self._policy)
        connection.execute(sa.delete(updates))

    # Updates

    def is_due(self) -> bool:
        """Whether a whole update, or a pass over many, waits."""
        return self.count_due() > 0

    def count_due(self) -> int:
        """How many whole updates wait: of choices, or of signals."""
        return max(self._lessons.count_new(self._marks)) // self._settings.update_every_preferences

    def learn_next(self, reporter: Reporter, check: Callable[[], None]) -> None:
        """One update; or one pass over all that is new, where that is much. check raises if the process is to stop."""
        is_much = self.count_due() >= BULK_UPDATES
        metrics = self._learn_in_bulk(reporter, check) if is_much else self.update()
        if metrics:
            self._show(reporter, metrics)

    def catch_up(self, reporter: Reporter, check: Callable[[], None]) -> None:
        """Learn all that is new now. Not what comes meanwhile: it might never end."""
        for _ in range(self.count_due()):
            check()
            if not self.is_due():
                break
            self.learn_next(reporter, check)
        if metrics := self.update():  # what is left is less than a whole update
            self._show(reporter, metrics)

    def update(self) -> dict[str, float]:
        """One update with what is new, at most a batch of it. Returns {} if nothing is new."""
        self._settle()
        self._forget_erased()
        rng = random.Random(f"{self._seed}-reward-{self.reward.version}")
        lesson = self._lessons.load_next(self._marks, rng)
        new = [*lesson.new, *lesson.edits]
        metrics = self.reward.update(new, lesson.replayed, rated=lesson.rated) if lesson.rows else {}
        used = self._list_used([*lesson.new, *lesson.frozen])
        self._take_down(Update(used, self._list_used(lesson.replayed), metrics, lesson.marks))
        self._settle()
        return metrics

    def _forget_erased(self) -> None:
        """Have the model learn on without the rows that are gone; the next state is without them."""
        if gone := self._erased.find(self.reward.list_known()):
            log.info("the reward model forgets %d rows that were erased", len(gone))
            self.reward.forget(gone)

    def _learn_in_bulk(self, reporter: Reporter, check: Callable[[], None]) -> dict[str, float]:
        """One pass over all that is new, a chunk in memory at a time. Killed, it begins again: nothing is marked yet."""
        self._settle()
        self._forget_erased()
        used: list[int] = []
        marks = self._marks
        num_new, _ = self._lessons.count_new(marks)
        num_said = sum(len(lesson.rows) for lesson in self._lessons.read_said(marks))
        total = num_new + num_said

        def read_chunks() -> Iterator[list[Pair | Rated]]:
            nonlocal marks
            for lesson in chain(self._lessons.read_choices(marks), self._lessons.read_said(marks)):
                check()
                if lesson.rows:
                    yield lesson.rows
                used.extend(self._list_used([*lesson.new, *lesson.frozen]))
                marks = lesson.marks
                release_memory()

        beside = f" and {num_said:,} ratings and edits" if num_said else ""
        reporter.show_phase("learning", f"the reward model learns {num_new:,} choices{beside} in one pass")
        metrics = self.reward.learn_in_bulk(
            read_chunks(), lambda num, _: reporter.show_share(min(1.0, num / total)), total=total
        )
        self._take_down(Update(used, [], metrics, marks))
        self._settle()
        return metrics

    def _take_down(self, done: Update) -> None:
        """Keep what an update used until it is settled. Nothing to learn was in it: that much is new no more, without a version."""
        if done.metrics:
            self._unsettled = replace(done, state=secrets.token_hex(8), parent=self._state)
            return
        if done.new:
            self._writer.run(lambda connection: mark_all(connection, done.new, as_new=True)).result()
        self._marks = done.marks

    def _list_used(self, pairs: list[Pair]) -> list[int]:
        """Ids of the pairs that were learnt from."""
        return [pair.row_id for pair in pairs if not self._quarantine.is_pending(pair.event_id)]

    def _settle(self) -> None:
        """Save and mark the last update, if that failed before: the model has learnt from its rows and must not again."""
        self._quarantine.flush()
        if (done := self._unsettled) is None:
            return
        if not self._states.find(self.reward.version).exists():
            self._states.save(self.reward.version, done, self.reward.save)
        reach("reward.saved")
        self._writer.run(lambda connection: self._mark(connection, done)).result()
        self._unsettled, self._marks, self._state = None, done.marks, done.state

    def _mark(self, connection: sa.Connection, done: Update) -> None:
        known = sa.select(updates.c.version).where(updates.c.version == self.reward.version)
        if connection.execute(known).first() is None:
            mark_all(connection, done.new, as_new=True)
            mark_all(connection, done.replayed, as_new=False)
            kept = {"metrics": json.dumps(done.metrics), "state": done.state, "uses": done.describe_uses()}
            connection.execute(sa.insert(updates).values(version=self.reward.version, **kept))

    def _show(self, reporter: Reporter, metrics: Mapping[str, float]) -> None:
        version = self.reward.version
        reporter.curves.add("reward", metrics, version)
        reporter.show_reward_version(version, *read_prequential(metrics), read_style(metrics))
        log.info("reward model %d: %s", version, describe_metrics(metrics))

    # What rounds use

    def measure(self, reporter: Reporter) -> dict[str, float]:
        """Measure the newest version once, and accept it for use or say why not. Shown to whoever looks."""
        with self._database.connect() as connection:
            held_out = rows.load_held_out(connection, self._policy, reject=self._quarantine.add)
            newest = read_history(connection, 1)
        correct, total = self.reward.accuracy(held_out)
        self._quarantine.flush()
        self._decide(self._figures((correct, total)), (correct, total), held_out)
        last = newest[-1] if newest else {}
        prequential, num_foreseen = read_prequential(last)
        figures = {"heldout_correct": float(correct), "heldout_total": float(total)}
        if total:
            figures["accuracy_heldout"] = correct / total
        reporter.curves.add("reward", figures, self.reward.version)
        reporter.show_reward(
            RewardView(
                version=self.reward.version,
                accuracy_heldout=figures.get("accuracy_heldout"),
                num_heldout=total,
                prequential_accuracy=prequential,
                num_foreseen=num_foreseen,
                version_in_use=self.version_in_use,
                refused=self._refused,
                style=read_style(last),
            )
        )
        return figures

    def _decide(self, figures: dict[str, Any], heldout: Count, held_out: Sequence[Pair]) -> None:
        """Accept the newest version, or say why not. heldout: what it has right of the held-out pairs."""
        version, accepted = self.reward.version, self._states.read_accepted()
        if version == 0 or (accepted and accepted.version == version):
            return
        self._refused = self._refuse(figures, self._compare(heldout, held_out)) if accepted else ""
        if self._refused:
            log.warning("reward model %d is not used: %s", version, self._refused)
        else:
            self._states.accept(Accepted(version, figures))

    def _compare(self, heldout: Count, held_out: Sequence[Pair]) -> Comparison:
        """The newest version beside the one in use: on the choices that came after that one, and on the same held-out pairs."""
        record = self.reward.record
        with self.holding(self.version_in_use):
            known = {row.event_id for row in self.reward.record.everything}
            later = [row.event_id for row in record.decisive if row.event_id not in known]
            with self._database.connect() as connection:
                pairs = rows.load_events(connection, self._policy, later, self._quarantine.add)
            again, last_heldout = self.reward.foresee(pairs), self.reward.accuracy(held_out)
        self._quarantine.flush()
        return compare_versions(record, again, heldout, last_heldout)

    @property
    def version_in_use(self) -> int:
        """The version that rounds use: the newest that was accepted."""
        accepted = self._states.read_accepted()
        return accepted.version if accepted else self.reward.version

    @contextmanager
    def holding(self, version: int) -> Iterator[None]:
        """Within, the reward model is this version, or the one in use where its state is gone; afterwards the newest again."""
        newest = self.reward.version
        if version != newest and not self._states.find(version).is_dir():
            log.warning("reward model %d is gone: %d takes its place", version, self.version_in_use)
            version = self.version_in_use
        if version == newest:
            yield
            return
        self.reward.load(self._states.find(version))
        try:
            yield
        finally:
            self.reward.load(self._states.find(newest))
            self._erased.look_again()


def mark_all(connection: sa.Connection, ids: Sequence[int], *, as_new: bool) -> None:
    """Count one use of each, however many they are."""
    for some in split_parameters(ids):
        mark_used(connection, some, as_new=as_new)


def is_of_chain(version: int, used: Update, known: Mapping[int, str]) -> bool:
    """Whether a state on disk is one that the database knows by name, or what came of the newest of those before a crash.

    known: names by version.
    """
    if version in known:
        return known[version] == used.state
    newest = max(known, default=0)
    return version == newest + 1 and used.parent == known.get(newest, "")


def read_prequential(metrics: Mapping[str, float]) -> tuple[float | None, int]:
    """What share of the last choices an update's model had foreseen, None for none yet; and how many those are."""
    num = int(metrics.get("num_foreseen", 0))
    return (metrics.get("accuracy_prequential") if num else None), num


def read_style(metrics: Mapping[str, float]) -> tuple[StyleView, ...]:
    """What an update's model had learnt of style; nothing of one whose figures lack how unsure it was."""
    return tuple(
        StyleView(name, metrics[f"taste_{name}"], metrics[f"taste_sd_{name}"])
        for name in FEATURES
        if f"taste_{name}" in metrics and f"taste_sd_{name}" in metrics
    )


def read_history(connection: sa.Connection, limit: int = 400) -> list[dict[str, float]]:
    """What the newest updates measured, oldest first, each with its `version`."""
    query = sa.select(updates.c.version, updates.c.metrics).order_by(updates.c.version.desc()).limit(limit)
    rows = connection.execute(query).all()
    return [{"version": float(row.version), **json.loads(row.metrics)} for row in reversed(rows)]
