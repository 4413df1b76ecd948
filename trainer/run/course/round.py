"""Runs one round: trains adapter "policy" from a published checkpoint, judges it, and publishes it or says why not.

Each step is durable before the next begins: prepared -> step k -> trained -> judged -> published. Killed at any point, a
round goes on under its number with the same rows in the same order, and nothing that is done is done again. Records are
closed in closing.py; schedule.py says when a round is due.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from feedback.database import Writer
from feedback.errors import DatabaseError
from feedback.faults import reach
from feedback.outages import describe_error
from trainer.learn.isolation import RoundAborted
from trainer.run import rounds
from trainer.run.course.closing import Closer
from trainer.run.course.files import RoundFiles
from trainer.run.course.nodes import NodesMissing
from trainer.run.course.planner import Planner, describe_plan
from trainer.run.course.task import Judged, Rows, Task, Training, list_pairs
from trainer.run.intake.quarantine import Quarantine
from trainer.run.publish.checkpoints import Published
from trainer.run.publish.publisher import Publisher, Trained
from trainer.run.report.reporter import Reporter
from trainer.run.reward.keeper import RewardKeeper
from trainer.run.rounds import Ending, OpenRound
from trainer.run.rows import pool, rows
from trainer.run.rows.plan import Plan
from trainer.run.status.requests import RoundRequests
from trainer.sections.training import RoundKind
from trainer.settings import TrainerSettings

log = logging.getLogger("trainer.run.learner")

DATABASE_ERRORS = (DatabaseError, SQLAlchemyError)


class RoundRunner:
    """Runs rounds one after the other. `stopping` aborts the one that is under way."""

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        keeper: RewardKeeper,
        quarantine: Quarantine,
        training: Training,
        database: sa.Engine,
        writer: Writer,
        publisher: Publisher,
        reporter: Reporter,
        closer: Closer,
        requests: RoundRequests,
        stopping: threading.Event,
        now: Callable[[], float],
    ) -> None:
        self._settings, self._root = settings.trainer, settings.rounds_dir
        self._keeper, self._quarantine, self._training = keeper, quarantine, training
        self._database, self._writer, self._publisher = database, writer, publisher
        self._reporter, self._closer, self._requests = reporter, closer, requests
        self._stopping, self._now = stopping, now
        self._planner = Planner(self._settings, settings.topic, database, quarantine, training, now)

    def run(self, stable: Published, reason: str, kind: RoundKind = "dpo") -> None:
        """Begin the next round, or go on with the one that is open, and see it to its record. Raises RoundAborted.

        kind: of a round that begins now. What an operator asked for waits while a round goes on by a plan that it has.
        """
        opened = self._writer.run(lambda connection: self._begin_round(connection, kind)).result()
        files = RoundFiles(self._root, opened.number)
        self._reporter.begin_round(opened.number, f"{reason}; from {stable.manifest.id}")
        log.info("round %d begins from %s (attempt %d): %s", opened.number, stable.manifest.id, opened.attempts, reason)
        try:
            num_deaths = files.count_deaths(opened.attempts)
            if num_deaths >= self._settings.max_attempts:
                # Its record says what it was, also where another trainer began it: the plan becomes a file here.
                self._find_plan(files, opened.number)
                ending = Ending(reason=f"the trainer died in it {num_deaths} times without coming further")
            else:
                ending = self._see_through(opened, stable, files)
        except (RoundAborted, NodesMissing):  # neither is the round's fault: it stays open, and this was no attempt
            self._writer.run(lambda connection: rounds.release_round(connection, opened.number)).result()
            raise
        except DATABASE_ERRORS:
            raise  # the database is gone for now: the round stays open and goes on
        except Exception as error:  # a round that cannot train is stopped with its reason; the loop goes on
            log.exception("round %d failed", opened.number)
            ending = Ending(reason=f"failed: {describe_error(error)}")
        self._closer.close(opened, files, ending)

    def _begin_round(self, connection: sa.Connection, kind: RoundKind) -> OpenRound:
        section, past = self._settings, rounds.read_past(connection)
        new = rows.count_after(connection, section.policy, past.last_preference_id)
        return rounds.begin_round(
            connection,
            kind=kind,
            last_preference_id=new.last_id,
            trigger_choice_at=rows.find_trigger_time(
                connection, section.policy, past.last_preference_id, section.round_every_preferences
            ),
            now=self._now(),
        )

    def _see_through(self, opened: OpenRound, stable: Published, files: RoundFiles) -> Ending:
        """All steps that are not done yet."""
        found = self._resume(files, opened.number)
        if found is None:
            made = self._prepare(opened, stable, files)
            if isinstance(made, Ending):
                return made
            reach("round.prepared")
            found = made
        plan, planned = found
        task = self._label(self._make_task(plan, planned, files), files)
        metrics = dict(self._train(task, files))
        judged = self._judge(task, files)
        metrics |= judged.figures | files.read_label_figures()
        self._reporter.curves.add("round", metrics, opened.number)
        made = Ending(
            reason=judged.reason if judged.ok else f"offline gate: {judged.reason}",
            metrics=metrics,
        )
        if not judged.ok:
            return made
        with self._time(files, "publishing"):
            return replace(made, checkpoint=self._publish(plan, metrics, made.reason))

    def _prepare(self, opened: OpenRound, stable: Published, files: RoundFiles) -> tuple[Plan, Rows] | Ending:
        """A new plan, durable by now, with its rows; or why there is none."""
        with (
            self._time(files, "preparing"),
            self._requests.taking(*DATABASE_ERRORS) as request,
        ):
            if refused := self._refresh_reward(opened):
                return Ending(reason=refused)
            plan, planned = self._planner.make_plan(
                opened,
                stable,
                self._publisher.published,
                self._keeper.version_in_use,
                from_base=bool(request and request.from_base),
            )
            if not plan.event_ids:
                return Ending(
                    reason="no row of its kind can be trained on",
                    start=plan.start,
                    last_preference_id=plan.last_preference_id,
                )
            files.write_plan(plan)
            self._store_plan(plan)
            return plan, planned

    def _resume(self, files: RoundFiles, number: int) -> tuple[Plan, Rows] | None:
        """The plan of a round that was interrupted, with its rows; None if it has to be prepared, or prepared anew."""
        plan = self._find_plan(files, number)
        if plan is None:
            return None
        for checkpoint in filter(None, (plan.parent, plan.reference)):
            if self._publisher.find(checkpoint, None) is None:
                log.warning("round %d is prepared anew: %s, which it needs, is gone", plan.number, checkpoint)
                files.remove()
                return None
        try:
            planned = self._planner.load_rows(plan)
            self._planner.load_prompts(plan)
        except pool.RowsMissing as error:
            log.warning("round %d is prepared anew: %s", plan.number, error)
            files.remove()
            return None
        log.info("round %d goes on as it was planned", plan.number)
        return plan, planned

    def _find_plan(self, files: RoundFiles, number: int) -> Plan | None:
        """The plan in the database, which wins: another trainer may have made it. Its own files go if they are of another."""
        plan = files.read_plan()
        with self._database.connect() as connection:
            stored = rounds.load_plan(connection, number)
        if stored is None:
            if plan is not None:
                self._store_plan(plan)
            return plan
        known = msgspec.json.decode(stored, type=Plan)
        if known != plan:
            log.info("round %d begins again from its plan: what was trained of it is not here", number)
            files.remove()
            files.write_plan(known)
        return known

    def _store_plan(self, plan: Plan) -> None:
        text = msgspec.json.encode(plan).decode()
        self._writer.run(lambda connection: rounds.store_plan(connection, plan.number, text)).result()

    def _refresh_reward(self, opened: OpenRound) -> str:
        """Have the reward model learn what is new; why there is nothing to train for, or ""."""
        self._reporter.show_phase("preparing", "the reward model learns what is new")
        self._keeper.catch_up(self._reporter, self.check_stopping)
        self._keeper.measure(self._reporter)
        if opened.kind == "sft":
            return ""
        may_learn, reason = self._training.has_something_to_learn()
        return "" if may_learn else reason

    def _make_task(self, plan: Plan, planned: Rows, files: RoundFiles) -> Task:
        """Raises KeyError if a checkpoint that the plan names is not here."""

        def progress(share: float, figures: Mapping[str, float]) -> None:
            self.check_stopping()
            files.add_point(share, figures)
            self._reporter.show_progress(plan.number, share, figures)
            reach("round.step")

        return Task(
            plan=plan,
            rows=planned,
            parent=self._find(plan.parent),
            reference=self._find(plan.reference) if plan.reference else None,
            snapshots=files.snapshots,
            progress=progress,
            prompts=self._planner.load_prompts(plan) if plan.prompts else (),
            show=self._show_share,
            check_stopping=self.check_stopping,
        )

    def _label(self, task: Task, files: RoundFiles) -> Task:
        """The task with pairs that the reward model labelled behind its rows, if its plan has prompts for such."""
        if not task.plan.prompts:
            return task
        labelled = files.read_labelled()
        if labelled is None:
            self._reporter.show_phase("preparing", f"the reward model labels answers to {len(task.prompts)} prompts")
            with self._time(files, "labelling"), self._keeper.holding(task.plan.reward_version):
                labelled = self._training.label(task)
            self._quarantine.flush()
            files.write_labelled(labelled)
            log.info(
                "round %d: %d pairs labelled by the reward model%s",
                task.plan.number,
                len(labelled.pairs),
                f": {labelled.reason}" if labelled.reason else "",
            )
        reach("round.labelled")
        return replace(task, rows=[*list_pairs(task), *(each.pair for each in labelled.pairs)])

    def _find(self, checkpoint: str) -> Path:
        published = self._publisher.find(checkpoint, None)
        if published is None:
            raise KeyError(f"no directory here holds {checkpoint}")
        return published.path

    def _train(self, task: Task, files: RoundFiles) -> dict[str, float]:
        """Leave the trained policy in its adapter, and in the round's files."""
        metrics = files.read_metrics()
        if metrics is not None:
            self._training.load(files.trained)
            return metrics
        self._reporter.show_phase("training", describe_rows(task.plan))
        rewarded = self._keeper.holding(task.plan.reward_version) if task.plan.kind == "ppo" else nullcontext()
        with self._time(files, "training"), rewarded:
            metrics = rounds.keep_finite(self._training.train(task))
            files.write_trained(self._training.save, metrics)
        if "share_generating" in metrics:
            files.split_phase("training", "sampling", metrics["share_generating"])
        self._quarantine.flush()
        reach("round.trained")
        return metrics

    def _judge(self, task: Task, files: RoundFiles) -> Judged:
        self.check_stopping()
        judged = files.read_verdict()
        if judged is None:
            self._reporter.show_phase("evaluating", f"beside {task.plan.parent}")
            with self._time(files, "judging"), self._keeper.holding(task.plan.reward_version):
                judged = self._training.judge(task)
            judged = msgspec.structs.replace(judged, figures=rounds.keep_finite(judged.figures))
            self._quarantine.flush()
            files.write_verdict(judged)
        reach("round.judged")
        return judged

    def _publish(self, plan: Plan, metrics: Mapping[str, float], reason: str) -> str:
        self._reporter.show_phase("publishing", reason or "it passed the offline gate", progress=1.0)
        with self._database.connect() as connection:
            learnt = self._quarantine.leave_out(connection, plan.event_ids)
        published = self._publisher.publish(
            Trained(
                parent=plan.parent,
                metrics=metrics,
                event_ids=learnt,
                watermark=plan.watermark,
                settings=describe_plan(plan),
            )
        )
        reach("round.published")
        return published.manifest.id

    def _show_share(self, share: float, step: str) -> None:
        self.check_stopping()
        self._reporter.show_share(share, step)

    def check_stopping(self) -> None:
        """Raises RoundAborted once the process is to stop."""
        if self._stopping.is_set():
            raise RoundAborted

    @contextmanager
    def _time(self, files: RoundFiles, phase: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            files.add_phase(phase, time.monotonic() - begun)


def describe_rows(plan: Plan) -> str:
    """What a round trains on, in words."""
    if plan.kind == "ppo":
        return f"on its own answers to {len(plan.new)} prompts"
    return f"on {len(plan.new)} new and {len(plan.replayed)} replayed rows"
