"""The learner's loop: reward updates and rounds, one step at a time, in the main thread.

A failing step is logged, shown and tried again. Does not read the log and does not register checkpoints: consumer and
registrar do, in threads of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import sqlalchemy as sa

from feedback.database import Writer
from feedback.outages import describe_error, log_failure
from trainer.run import preferences, rounds
from trainer.run.checkpoints import Published
from trainer.run.metrics import Curves, Metrics
from trainer.run.publisher import Publisher, Trained
from trainer.run.quarantine import Quarantine
from trainer.run.registry import Gateway, GatewayRefused, GatewayUnavailable
from trainer.run.reporter import Reporter
from trainer.run.reward_keeper import RewardKeeper, measure_reward, update_reward
from trainer.run.round import RoundAborted, RoundRunner, Training
from trainer.run.status import Board
from trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from trainer.model.stack import PolicyStack

log = logging.getLogger("trainer.run.learner")

RETRY_AFTER_S = 5.0


class Learner:
    """Holds the policy stack and everything a step needs. `run` until the event is set."""

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        stack: PolicyStack,
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
        stopping: threading.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        section = settings.trainer
        self._settings, self._stack, self._keeper, self._quarantine = section, stack, keeper, quarantine
        self._database, self._gateway, self._publisher = database, gateway, publisher
        self._stopping, self._now, self._started_at = stopping, now, now()
        self._reporter = Reporter(database, board, metrics, curves, publisher, section.round_every_preferences)
        self._runner = RoundRunner(
            settings=section,
            stack=stack,
            keeper=keeper,
            quarantine=quarantine,
            training=training,
            database=database,
            writer=writer,
            publisher=publisher,
            reporter=self._reporter,
            stopping=stopping,
            now=now,
        )

    def prepare(self) -> None:
        """Take up where a crash left off; publish checkpoint 0, which answers as the base does, if there is none."""
        self._runner.close_published()
        if not self._publisher.published:
            self._stack.reset_adapter("policy", like=None)
            self._publisher.publish(None, Trained(reason="the base"), {})
        self._keeper.restore()
        measure_reward(self._keeper, self._reporter)
        self._reporter.show_store()

    def run(self) -> None:
        """Step until stopping. A failing step is logged and tried again."""
        while not self._stopping.is_set():
            try:
                if self.step():
                    continue
            except RoundAborted:
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
        self._reporter.show_store()
        self._runner.close_published()
        is_due, reason = self._explain_round()
        parent = self._find_start(reason) if is_due else None
        if parent is not None:
            self._runner.run(parent)
            return True
        if self._keeper.is_due():
            update_reward(self._keeper, self._reporter)
            return True
        if not is_due:
            self._reporter.show_waiting("idle", reason)
        return False

    def _explain_round(self) -> tuple[bool, str]:
        with self._database.connect() as connection:
            if rounds.find_open_round(connection):
                return True, "the round that was interrupted"
            after_id, finished_at = rounds.last_finished(connection)
            new = preferences.count_after(connection, after_id)
        return rounds.explain_round(new, self._now() - (finished_at or self._started_at), self._settings)

    def _find_start(self, reason: str) -> Published | None:
        """The checkpoint that serves, to start from; None, with the reason on the board, if a round must wait."""
        wait = self._reporter.show_waiting
        try:
            state = self._gateway.read_state()
            untried = self._find_untried()
        except (GatewayUnavailable, GatewayRefused) as error:
            wait("waiting", f"{reason}; the gateway does not say who is stable: {error}")
            return None
        found = self._publisher.find(state.stable, state.stable_digest)
        may_overlap = self._settings.rounds_during_rollout
        if state.rollout and not may_overlap:
            wait("waiting", f"{reason}; rollout {state.rollout} is {state.rollout_phase}")
        elif untried and not may_overlap:
            wait("waiting", f"{reason}; {untried} has not been on trial yet")
        elif state.stable is None:
            wait("waiting", f"{reason}; the gateway has no stable checkpoint yet")
        elif found is None:
            wait("waiting", f"{reason}; no directory here holds the stable checkpoint {state.stable}")
        else:
            return found
        return None

    def _find_untried(self) -> str | None:
        """The newest published checkpoint, if the gateway does not know it yet or lets it wait for its trial."""
        if not self._publisher.published:
            return None
        newest = self._publisher.published[-1].manifest
        statuses = {known.status for known in self._gateway.list_checkpoints() if known.digest == newest.digest}
        return newest.id if not statuses or "waiting" in statuses else None
