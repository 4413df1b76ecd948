"""Shows what the trainer does: on the board, in metrics, in curves and in the log. Decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import sqlalchemy as sa

from feedback import inbox, quarantine
from trainer.run import preferences, rounds
from trainer.run.metrics import Curves, Metrics
from trainer.run.status import Board, RewardView

if TYPE_CHECKING:
    from trainer.run.publisher import Publisher

log = logging.getLogger("trainer.run.learner")


class Reporter:
    """What the learner and its rounds report to. Used by the learner's thread alone."""

    def __init__(
        self,
        database: sa.Engine,
        board: Board,
        metrics: Metrics,
        curves: Curves,
        publisher: Publisher,
        round_every: int,
    ) -> None:
        self.board, self.metrics, self.curves = board, metrics, curves
        self._database, self._publisher, self._round_every = database, publisher, round_every
        self._logged_reason = ""

    def show_store(self) -> None:
        """What the database and the directory of checkpoints hold."""
        show_inbox(self._database, self.board, self.metrics, self._round_every)
        published = self._publisher.published
        self.board.update(checkpoint=published[-1].manifest.id if published else None)
        self.metrics.checkpoints.set(len(published))

    def show_reward(self, version: int, correct: int, total: int) -> None:
        """The reward model, with what it foresees of the held-out choices."""
        accuracy = correct / total if total else None
        self.board.update(reward=RewardView(version, accuracy, total))
        self.metrics.reward_version.set(version)
        if accuracy is not None:
            self.metrics.reward_accuracy.set(accuracy)

    def show_progress(self, number: int, share: float, step: Mapping[str, float]) -> None:
        """How far a round's training is, and the figures of its last step."""
        self.board.show_progress(share)
        self.metrics.round_progress.set(share)
        self.curves.add(f"dpo/round-{number:03d}", step, round(share * 1000))

    def show_waiting(self, state: str, reason: str) -> None:
        """Why no round is under way; logged when it changes."""
        if reason != self._logged_reason:
            self._logged_reason = reason
            log.info("%s: %s", state, reason)
        self.board.show_round(state, reason)


def show_inbox(database: sa.Engine, board: Board, metrics: Metrics, round_every: int) -> None:
    """Put what the trainer's database knows on the board. Any thread may."""
    with database.connect() as connection:
        totals = preferences.count_totals(connection)
        after_id, _ = rounds.last_finished(connection)
        new = preferences.count_after(connection, after_id)
        finished = rounds.list_finished(connection)
        num_dead = inbox.count_dead_letters(connection)
        num_quarantined = quarantine.count(connection)
    board.update(
        preferences=totals.usable,
        decisive=totals.decisive,
        uses=totals.uses,
        new_since_round=new.decisive,
        round_every=round_every,
        rounds=finished,
        dead_letters=num_dead,
        quarantined=num_quarantined,
    )
    metrics.preferences.set(totals.usable)
    metrics.dead_letters.set(num_dead)
    metrics.quarantined.set(num_quarantined)


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """`loss 0.61, accuracy 0.72`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
