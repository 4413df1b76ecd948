"""Shows what the trainer does: on the board, in metrics, in curves and in the log. Decides nothing."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import sqlalchemy as sa

from feedback import inbox, quarantine
from trainer.run import rounds
from trainer.run.rows import rows
from trainer.run.rows.schedule import estimate_seconds_left
from trainer.run.status.board import Board, RewardView, StyleView
from trainer.run.status.metrics import Curves, Metrics
from trainer.settings import TrainerSection

if TYPE_CHECKING:
    from trainer.run.publish.publisher import Publisher

log = logging.getLogger("trainer.run.learner")

LOG_EVERY_S = 60.0  # of a reason to wait whose numbers alone change


class Reporter:
    """What the learner and its rounds report to. Used by the learner's thread alone."""

    def __init__(
        self,
        database: sa.Engine,
        board: Board,
        metrics: Metrics,
        curves: Curves,
        publisher: Publisher,
        settings: TrainerSection,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.board, self.metrics, self.curves = board, metrics, curves
        self._database, self._publisher, self._settings = database, publisher, settings
        self._clock = clock
        self._logged, self._logged_at = ("", ""), -LOG_EVERY_S  # state and reason
        self._phase = ("waiting", "the trainer is starting")
        self._began: tuple[float, float] | None = None  # share and time at the phase's first report of progress

    def show_store(self) -> None:
        """What the database and the directory of checkpoints hold."""
        show_inbox(self._database, self.board, self.metrics, self._settings)
        published = self._publisher.published
        self.board.update(checkpoint=published[-1].manifest.id if published else None)
        self.metrics.checkpoints.set(len(published))

    def show_reward(self, view: RewardView) -> None:
        """The reward model, with what it foresees of the held-out choices."""
        self.board.update(reward=view)
        self.metrics.reward_version.set(view.version)
        if view.accuracy_heldout is not None:
            self.metrics.reward_accuracy.set(view.accuracy_heldout)

    def show_reward_version(
        self, version: int, prequential_accuracy: float | None, num_foreseen: int, style: tuple[StyleView, ...] = ()
    ) -> None:
        """The reward model learnt; what it foresees of held-out choices is measured later."""
        view = replace(
            self.board.read().reward,
            version=version,
            prequential_accuracy=prequential_accuracy,
            num_foreseen=num_foreseen,
            style=style,
        )
        self.board.update(reward=view)
        self.metrics.reward_version.set(version)

    def begin_round(self, number: int, reason: str) -> None:
        """A round begins, or goes on."""
        self._begin_phase("preparing", reason)
        self.board.begin_round(number, reason)

    def show_phase(self, state: str, reason: str, progress: float = 0.0) -> None:
        """The round under way does something else now."""
        self._begin_phase(state, reason)
        self.board.show_round(state, reason, progress=progress)

    def _begin_phase(self, state: str, reason: str) -> None:
        self._phase, self._began = (state, reason), None
        log.info("%s: %s", state, reason)

    def show_share(self, share: float, reason: str = "") -> None:
        """How far the phase is, and how many seconds are left at its pace."""
        state, begun_with = self._phase
        now = self._clock()
        if self._began is None or share <= self._began[0]:  # the pace is that of what moves
            self._began = share, now
        left_s = estimate_seconds_left(share, self._began[0], now - self._began[1])
        self.board.show_round(state, reason or begun_with, progress=share, seconds_left=left_s)

    def show_progress(self, number: int, share: float, step: Mapping[str, float]) -> None:
        """How far a round's training is, and the figures of its last step."""
        self.show_share(share)
        self.metrics.round_progress.set(share)
        self.curves.add(f"round-{number:06d}", step, round(share * 1000))

    def show_finished(self, number: int, checkpoint: str | None, reason: str) -> None:
        """A round ended."""
        outcome = "published" if checkpoint else "stopped"
        self.metrics.rounds.labels(outcome).inc()
        log.info("round %d %s: %s", number, f"published {checkpoint}" if checkpoint else outcome, reason)
        self.show_store()
        self.show_waiting("idle", f"round {number} {outcome}: {reason}")

    def show_waiting(self, state: str, reason: str, progress: float = 0.0) -> None:
        """Why no round is under way, and how much of what it needs is there.

        Logged when the kind of reason changes, once a minute where its numbers alone do.
        """
        now, (logged_state, logged_reason) = self._clock(), self._logged
        is_other = (state, _mask_numbers(reason)) != (logged_state, _mask_numbers(logged_reason))
        if is_other or (reason != logged_reason and now - self._logged_at >= LOG_EVERY_S):
            self._logged, self._logged_at = (state, reason), now
            log.info("%s: %s", state, reason)
        self._phase = state, reason
        self.board.show_round(state, reason, progress=progress)


def show_inbox(database: sa.Engine, board: Board, metrics: Metrics, settings: TrainerSection) -> None:
    """Put what the trainer's database knows on the board. Any thread may."""
    with database.connect() as connection:
        totals = rows.count_totals(connection, settings.policy)
        past = rounds.read_past(connection)
        new = rows.count_after(connection, settings.policy, past.last_preference_id)
        finished = rounds.list_finished(connection)
        num_dead = inbox.count_dead_letters(connection)
        num_quarantined = quarantine.count(connection)
    board.update(
        preferences=totals.usable,
        decisive=totals.decisive,
        uses=totals.uses,
        new_since_round=new.decisive,
        round_every=settings.round_every_preferences,
        rounds=finished,
        dead_letters=num_dead,
        quarantined=num_quarantined,
    )
    metrics.preferences.set(totals.usable)
    metrics.dead_letters.set(num_dead)
    metrics.quarantined.set(num_quarantined)


def _mask_numbers(reason: str) -> str:
    """What a reason says, whatever its counts; ids of checkpoints and rollouts stay."""
    return re.sub(r"(?<![\w-])[\d,.]+(?![\w-])", "#", reason)


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """`loss 0.61, accuracy 0.72`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
