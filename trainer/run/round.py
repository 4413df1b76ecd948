"""Runs one round: trains adapter "policy" from a published checkpoint, judges it, and publishes it or says why not.

It may be killed at any point: a round begins again under its number, and one whose checkpoint was published before its
record closed is closed from the manifest. rounds.py keeps the records and says when a round is due.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from feedback.database import Writer
from feedback.errors import DatabaseError
from feedback.faults import reach
from feedback.outages import describe_error
from trainer.run import preferences, rounds
from trainer.run.checkpoints import Published
from trainer.run.publisher import Publisher, Trained
from trainer.run.quarantine import Quarantine
from trainer.run.reporter import Reporter
from trainer.run.reward_keeper import RewardKeeper, measure_reward, update_reward
from trainer.settings import TrainerSection
from trainer.text.pairs import Pair, choose_round_pairs

if TYPE_CHECKING:
    from trainer.judge.evaluate import Verdict
    from trainer.model.stack import PolicyStack

log = logging.getLogger("trainer.run.learner")


class RoundAborted(Exception):
    """The process is stopping: the round begins again at the next start."""


@dataclass(frozen=True)
class Training:
    """The learning functions a learner calls, so that tests can give it light ones.

    train(pairs, rng, progress) moves adapter "policy" and returns metrics; judge() is the offline gate;
    has_something_to_learn(correct, total) reads held-out accuracy.
    """

    train: Callable[[list[Pair], random.Random, Callable[[float, dict[str, float]], None]], dict[str, float]]
    judge: Callable[[], Verdict]
    has_something_to_learn: Callable[[int, int], tuple[bool, str]]


class RoundRunner:
    """Runs rounds one after the other over one policy stack. `stopping` aborts the one that is under way."""

    def __init__(
        self,
        *,
        settings: TrainerSection,
        stack: PolicyStack,
        keeper: RewardKeeper,
        quarantine: Quarantine,
        training: Training,
        database: sa.Engine,
        writer: Writer,
        publisher: Publisher,
        reporter: Reporter,
        stopping: threading.Event,
        now: Callable[[], float],
    ) -> None:
        self._settings, self._stack, self._keeper, self._quarantine = settings, stack, keeper, quarantine
        self._training, self._database, self._writer = training, database, writer
        self._publisher, self._reporter, self._stopping, self._now = publisher, reporter, stopping, now

    def run(self, parent: Published) -> None:
        """Begin the next round, or the one that is open, and see it to its record. Raises RoundAborted."""
        opened = self._writer.run(self._begin_round).result()
        self._reporter.board.begin_round(opened.number, f"from {parent.manifest.id}")
        log.info("round %d begins from %s (attempt %d)", opened.number, parent.manifest.id, opened.attempts)
        checkpoint: str | None = None
        metrics: Mapping[str, float] = {}
        try:
            if opened.attempts > self._settings.max_attempts:
                reason = f"the trainer died in it {opened.attempts - 1} times"
            else:
                trained = self._train(opened, parent)
                reason, metrics = trained.failure or trained.reason, trained.metrics
                if not trained.failure:
                    checkpoint = self._publish_round(opened, parent, trained)
        except RoundAborted:
            self._writer.run(lambda connection: rounds.release_round(connection, opened.number)).result()
            raise
        except (DatabaseError, SQLAlchemyError):
            raise  # the database is gone for now: the round stays open and begins again
        except Exception as error:  # a round that cannot train is stopped with its reason; the loop goes on
            log.exception("round %d failed", opened.number)
            reason = f"failed: {describe_error(error)}"
        self._finish(opened.number, reason, checkpoint, metrics)

    def _begin_round(self, connection: sa.Connection) -> rounds.OpenRound:
        after_id, _ = rounds.last_finished(connection)
        new = preferences.count_after(connection, after_id)
        nth = self._settings.round_every_preferences
        return rounds.begin_round(
            connection,
            kind="dpo",
            last_preference_id=new.last_id,
            trigger_choice_at=preferences.find_trigger_time(connection, after_id, nth),
            now=self._now(),
        )

    def _train(self, opened: rounds.OpenRound, parent: Published) -> Trained:
        """Ask whether there is anything to learn, train, and judge. Leaves the result in adapter "policy"."""
        for _ in range(self._keeper.count_due()):  # not what comes meanwhile: it might never end
            self._check_stopping()
            update_reward(self._keeper, self._reporter)
        self._keeper.update()  # what is left is less than a batch
        correct, total = measure_reward(self._keeper, self._reporter)
        may_learn, reason = self._training.has_something_to_learn(correct, total)
        metrics = {"heldout_correct": float(correct), "heldout_total": float(total)}
        if not may_learn:
            return Trained(failure=reason, metrics=metrics)
        self._stack.load_adapter("stable", parent.path)
        pairs = self._choose_pairs(opened, parent)
        rng = random.Random(f"{self._settings.seed}-round-{opened.number}")
        metrics |= self._training.train(pairs, rng, lambda share, step: self._report(opened.number, share, step))
        self._check_stopping()
        self._reporter.board.show_round("evaluating", f"beside {parent.manifest.id}", progress=1.0)
        verdict = self._training.judge()
        metrics |= verdict.metrics
        self._reporter.curves.add("round", metrics, opened.number)
        failure = "" if verdict.ok else f"offline gate: {verdict.reason}"
        used = [pair.event_id for pair in pairs if not self._quarantine.is_pending(pair.event_id)]
        self._quarantine.flush()
        return Trained(failure, verdict.reason, metrics, used)

    def _choose_pairs(self, opened: rounds.OpenRound, parent: Published) -> list[Pair]:
        """Set the policy where it starts, and draw what it trains on: what stable has not seen, and replay.

        Every few published rounds it starts from the base, with replay for all it knew: chains of adapters fail to
        recover (2505.18126).
        """
        dpo = self._settings.dpo
        seen = int(parent.manifest.settings.get("last_preference_id", 0))
        with self._database.connect() as connection:
            num_published = rounds.count_published(connection)
            reject, last_id = self._quarantine.add, opened.last_preference_id
            old = [pair for _, pair in preferences.load_between(connection, 0, seen, reject)]
            new = [pair for _, pair in preferences.load_between(connection, seen, last_id, reject)]
        restarts = bool(dpo.restart_every and num_published and num_published % dpo.restart_every == 0)
        self._stack.reset_adapter("policy", like=None if restarts else "stable")
        rng = random.Random(f"{self._settings.seed}-pairs-{opened.number}")
        if restarts:
            new, old = old + new, []
        return choose_round_pairs(new, old, max_new=dpo.max_new_pairs, replay_share=dpo.replay_share, rng=rng)

    def _report(self, number: int, share: float, step: dict[str, float]) -> None:
        self._check_stopping()
        self._reporter.show_progress(number, share, step)

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise RoundAborted

    def _publish_round(self, opened: rounds.OpenRound, parent: Published, trained: Trained) -> str:
        self._reporter.board.show_round("publishing", trained.reason or "it passed the offline gate", progress=1.0)
        extra = {
            "round": opened.number,
            "kind": opened.kind,
            "last_preference_id": opened.last_preference_id,
            "trigger_choice_at": opened.trigger_choice_at,
        }
        published = self._publisher.publish(parent.manifest.id, trained, extra)
        reach("round.published")
        return published.manifest.id

    def _finish(self, number: int, reason: str, checkpoint: str | None, metrics: Mapping[str, float]) -> None:
        self._writer.run(
            lambda connection: rounds.finish_round(
                connection, number, reason=reason, checkpoint=checkpoint, metrics=metrics, now=self._now()
            )
        ).result()
        outcome = "published" if checkpoint else "stopped"
        self._reporter.metrics.rounds.labels(outcome).inc()
        log.info("round %d %s: %s", number, f"published {checkpoint}" if checkpoint else outcome, reason)
        self._reporter.show_store()
        self._reporter.show_waiting("idle", f"round {number} {outcome}: {reason}")

    def close_published(self) -> None:
        """A crash, or a database that was gone, between the rename and the record: the manifest says which round it was."""
        with self._database.connect() as connection:
            opened = rounds.find_open_round(connection)
        if opened and (published := self._publisher.find_of_round(opened.number)):
            manifest = published.manifest
            self._finish(opened.number, "published before its record closed", manifest.id, manifest.metrics)
