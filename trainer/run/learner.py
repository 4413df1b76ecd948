"""The learner's loop: reward updates and rounds, one step at a time, in the main thread.

A failing step is logged, shown and tried again. Does not read the log and does not register checkpoints: consumer and
registrar do, in threads of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from feedback.database import Writer
from feedback.outages import describe_error, log_failure
from trainer.learn.isolation import RoundAborted
from trainer.model.memory import release_memory
from trainer.run import rounds
from trainer.run.course.closing import Closer
from trainer.run.course.round import RoundRunner
from trainer.run.course.task import Training
from trainer.run.intake.quarantine import Quarantine
from trainer.run.publish.checkpoints import Published
from trainer.run.publish.publisher import Publisher, Trained
from trainer.run.publish.registry import Gateway, GatewayRefused, GatewayUnavailable
from trainer.run.report.reporter import Reporter
from trainer.run.report.watch import TrafficWatch
from trainer.run.reward.keeper import RewardKeeper
from trainer.run.rows import pool, rows
from trainer.run.rows.schedule import Due, Situation, explain_round, explain_wait
from trainer.run.status.board import Board
from trainer.run.status.metrics import Curves, Metrics
from trainer.run.status.requests import RoundRequests
from trainer.settings import TrainerSettings

log = logging.getLogger("trainer.run.learner")

RETRY_AFTER_S = 5.0


class Learner:
    """Holds the learning functions and everything a step needs. `run` until the event is set."""

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        keeper: RewardKeeper,
        quarantine: Quarantine,
        training: Training,
        database: sa.Engine,
        writer: Writer,
        gateway: Gateway,
        publisher: Publisher,
        board: Board,
        metrics: Metrics,
        curves: Curves,
        requests: RoundRequests,
        stopping: threading.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._topic = settings.trainer, settings.topic
        self._keeper, self._quarantine, self._training = keeper, quarantine, training
        self._database, self._gateway, self._publisher = database, gateway, publisher
        self._requests, self._stopping, self._now, self._started_at = requests, stopping, now, now()
        self.is_gateway_away = False  # a round is due, and the gateway did not say what to begin from
        self._counted: tuple[tuple[int, int], int] | None = None  # demonstrations, up to which rows
        self._reporter = Reporter(database, board, metrics, curves, publisher, settings.trainer)
        self._closer = Closer(settings.rounds_dir, database, writer, publisher, quarantine, self._reporter, now)
        self._watch = TrafficWatch(database, gateway, self._reporter, settings.trainer, training.list_foreseen)
        self._runner = RoundRunner(
            settings=settings,
            keeper=keeper,
            quarantine=quarantine,
            training=training,
            database=database,
            writer=writer,
            publisher=publisher,
            reporter=self._reporter,
            closer=self._closer,
            requests=requests,
            stopping=stopping,
            now=now,
        )

    def prepare(self) -> None:
        """Take up where a crash left off; publish checkpoint 0, which answers as the base does, if there is none."""
        self._closer.close_published()
        self._closer.remove_orphans()
        if not self._publisher.published:
            self._training.reset()
            self._publisher.publish(Trained())
        self._training.tidy()
        self._keeper.restore()
        self._keeper.measure(self._reporter)
        self._reporter.show_store()

    def run(self) -> None:
        """Step until stopping. A failing step is logged and tried again."""
        while not self._stopping.is_set():
            try:
                if self.step():
                    continue
            except RoundAborted:
                self._training.tidy()
                return
            except Exception as error:  # the loop's edge
                log_failure(log, "the learner failed, trying again", error)
                self._reporter.metrics.learner_errors.inc()
                reason = f"the last step failed and is tried again: {describe_error(error)}"
                self._reporter.board.show_round("failing", reason)
                self._stopping.wait(RETRY_AFTER_S)
            self._stopping.wait(self._settings.poll_s)

    def step(self) -> bool:
        """Do the next thing that is due; return whether there was one.

        A round comes before the reward model's next update: where choices come faster than updates, it would never begin.
        """
        self._quarantine.flush()
        self._training.tidy()
        self._reporter.show_store()
        self._closer.close_published()
        self._watch.look()
        due = self._explain_round()
        stable = self._find_start(due) if due.is_due else None
        if stable is not None:
            try:
                self._runner.run(stable, due.reason, due.kind)
            finally:
                release_memory()
            return True
        if self._keeper.is_due():
            self._keeper.learn_next(self._reporter, self._runner.check_stopping)
            return True
        if not due.is_due:
            self._reporter.show_waiting("idle", due.reason, due.progress)
        return False

    def _explain_round(self) -> Due:
        section = self._settings
        with self._database.connect() as connection:
            if rounds.find_open_round(connection):
                return Due(True, "the round that was interrupted", 1.0)
            past = rounds.read_past(connection)
            situation = Situation(
                new=rows.count_after(connection, section.policy, past.last_preference_id),
                num_left=past.num_left,
                num_demonstrations=self._count_demonstrations(connection) if "sft" in section.round_kinds else 0,
                num_rounds=past.num_rounds,
                since_s=self._now() - (past.finished_at or self._started_at),
                is_requested=self._requests.look() is not None,
            )
        return explain_round(situation, section)

    def _count_demonstrations(self, connection: sa.Connection) -> int:
        """Demonstrations that no finished SFT round has had before it, whatever became of that round."""
        newest = pool.find_newest_demonstration(connection)
        if self._counted is None or self._counted[0] != newest:  # they are read one by one: not twice a second
            found = pool.read_demonstrations(connection, policy=self._settings.policy, topic=self._topic, taught=())
            self._counted = newest, len(found.new)
        return max(0, self._counted[1] - rounds.count_seen_demonstrations(connection))

    def _find_start(self, due: Due) -> Published | None:
        """The checkpoint that serves, to start from; None, with the reason on the board, if a round must wait."""
        wait = self._reporter.show_waiting
        self.is_gateway_away = True
        try:
            state = self._gateway.read_state()
            untried = self._find_untried()
        except (GatewayUnavailable, GatewayRefused) as error:
            wait("waiting", f"{due.reason}; the gateway does not say who is stable: {error}", due.progress)
            return None
        self.is_gateway_away = state.stable is None and not state.rollout
        found = self._publisher.find(state.stable, state.stable_digest)
        may_overlap = self._settings.rounds_during_rollout
        reason = explain_wait(state, untried, found is not None, may_overlap=may_overlap)
        if reason:
            wait("waiting", f"{due.reason}; {reason}", due.progress)
            return None
        return found

    def find_unregistered(self) -> list[str]:
        """The newest checkpoint, if the gateway does not know it or does not answer."""
        newest = self._publisher.published[-1:]
        try:
            known = {each.digest for each in self._gateway.list_checkpoints()}
        except (GatewayUnavailable, GatewayRefused):
            known = set()
        return [each.manifest.id for each in newest if each.manifest.digest not in known]

    def _find_untried(self) -> str | None:
        """The newest published checkpoint, if the gateway does not know it yet or lets it wait for its trial."""
        if not self._publisher.published:
            return None
        newest = self._publisher.published[-1].manifest
        statuses = {known.status for known in self._gateway.list_checkpoints() if known.digest == newest.digest}
        return newest.id if not statuses or "waiting" in statuses else None
