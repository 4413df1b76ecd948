"""The learner's loop: reward updates, rounds, the offline gate, publication. One step at a time, in the main thread.

Everything may be killed at any point: a round begins again under its number, a checkpoint is published by one rename,
and a round whose checkpoint was published before its record closed is closed from the manifest. Does not read the log
and does not register checkpoints: consumer and registrar do, in threads of their own.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from feedback import inbox
from feedback.database import Writer
from feedback.errors import DatabaseError
from feedback.faults import reach
from trainer import preferences, rounds
from trainer.checkpoints import Published
from trainer.dataset import Pair, choose_round_pairs
from trainer.metrics import Curves, Metrics
from trainer.publisher import Publisher, Trained
from trainer.registry import Gateway, GatewayRefused, GatewayUnavailable
from trainer.rewarding import RewardKeeper
from trainer.settings import TrainerSettings
from trainer.status import Board, RewardView

if TYPE_CHECKING:
    from trainer.evaluate import Verdict
    from trainer.models import PolicyStack

log = logging.getLogger("trainer.learner")


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


class Learner:
    """Holds the policy stack and everything a step needs. `run` until the event is set."""

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        stack: PolicyStack,
        keeper: RewardKeeper,
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
        self._settings, self._stack, self._keeper, self._training = settings, stack, keeper, training
        self._database, self._writer, self._gateway, self._publisher = database, writer, gateway, publisher
        self._board, self._metrics, self._curves, self._stopping, self._now = board, metrics, curves, stopping, now
        self._started_at = now()
        self._told = ""

    # The loop

    def prepare(self) -> None:
        """Take up where a crash left off; publish checkpoint 0, which answers as the base does, if there is none."""
        self._close_published_round()
        if not self._publisher.published:
            self._stack.reset_adapter("policy", like=None)
            self._publisher.publish(None, Trained(reason="the base"), {})
        self._keeper.restore()
        self._measure_reward()
        self._show()

    def run(self) -> None:
        """Step until stopping. A failing step is logged and tried again."""
        while not self._stopping.is_set():
            try:
                if self.step():
                    continue
            except RoundAborted:
                return
            except Exception:  # the loop's edge
                log.exception("the learner failed, trying again")
                self._metrics.learner_errors.inc()
                self._stopping.wait(5.0)
            self._stopping.wait(self._settings.trainer.poll_s)

    def step(self) -> bool:
        """Do the next thing that is due; return whether there was one.

        A round comes before the reward model's next update: where choices come faster than updates, it would never begin.
        """
        self._show()
        self._close_published_round()
        is_due, reason = self._explain_round()
        parent = self._find_start(reason) if is_due else None
        if parent is not None:
            self._run_round(parent)
            return True
        if self._keeper.is_due():
            self._update_reward()
            return True
        if not is_due:
            self._wait("idle", reason)
        return False

    # Reward model

    def _update_reward(self) -> None:
        if metrics := self._keeper.update():
            version = self._keeper.reward.version
            correct, total = self._measure_reward()
            measured = {**metrics, "accuracy_heldout": correct / total} if total else metrics
            self._curves.add("reward", measured, version)
            log.info("reward model %d: %s", version, describe_metrics(measured))

    def _measure_reward(self) -> tuple[int, int]:
        """(correct, total) on held-out choices, shown to whoever looks."""
        correct, total = self._keeper.measure()
        version, accuracy = self._keeper.reward.version, correct / total if total else None
        self._board.update(reward=RewardView(version, accuracy, total))
        self._metrics.reward_version.set(version)
        if accuracy is not None:
            self._metrics.reward_accuracy.set(accuracy)
        return correct, total

    # When a round may begin

    def _explain_round(self) -> tuple[bool, str]:
        with self._database.connect() as connection:
            if rounds.find_open_round(connection):
                return True, "the round that was interrupted"
            after_id, finished_at = rounds.last_finished(connection)
            new = preferences.count_after(connection, after_id)
        return rounds.explain_round(new, self._now() - (finished_at or self._started_at), self._settings.trainer)

    def _find_start(self, reason: str) -> Published | None:
        """The checkpoint that serves, to start from; None, with the reason on the board, if a round must wait."""
        try:
            state = self._gateway.read_state()
            untried = self._find_untried()
        except (GatewayUnavailable, GatewayRefused) as error:
            self._wait("waiting", f"{reason}; the gateway does not say who is stable: {error}")
            return None
        found = self._publisher.find(state.stable, state.stable_digest)
        may_overlap = self._settings.trainer.rounds_during_rollout
        if state.rollout and not may_overlap:
            self._wait("waiting", f"{reason}; rollout {state.rollout} is {state.rollout_phase}")
        elif untried and not may_overlap:
            self._wait("waiting", f"{reason}; {untried} has not been on trial yet")
        elif state.stable is None:
            self._wait("waiting", f"{reason}; the gateway has no stable checkpoint yet")
        elif found is None:
            self._wait("waiting", f"{reason}; no directory here holds the stable checkpoint {state.stable}")
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

    # A round

    def _run_round(self, parent: Published) -> None:
        opened = self._writer.run(self._begin_round).result()
        self._board.update_round(state="training", number=opened.number, progress=0.0, reason="")
        log.info("round %d begins from %s (attempt %d)", opened.number, parent.manifest.id, opened.attempts)
        checkpoint: str | None = None
        metrics: Mapping[str, float] = {}
        try:
            if opened.attempts > self._settings.trainer.max_attempts:
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
            reason = f"failed: {type(error).__name__}: {error}"
        self._finish(opened.number, reason, checkpoint, metrics)

    def _begin_round(self, connection: sa.Connection) -> rounds.OpenRound:
        after_id, _ = rounds.last_finished(connection)
        new = preferences.count_after(connection, after_id)
        nth = self._settings.trainer.round_every_preferences
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
            self._update_reward()
        self._keeper.update()  # what is left is less than a batch
        correct, total = self._measure_reward()
        may_learn, reason = self._training.has_something_to_learn(correct, total)
        metrics = {"heldout_correct": float(correct), "heldout_total": float(total)}
        if not may_learn:
            return Trained(failure=reason, metrics=metrics)
        self._stack.load_adapter("stable", parent.path)
        pairs = self._choose_pairs(opened, parent)
        rng = random.Random(f"{self._settings.trainer.seed}-round-{opened.number}")
        metrics |= self._training.train(pairs, rng, lambda share, step: self._report(opened.number, share, step))
        self._check_stopping()
        self._board.update_round(state="evaluating", progress=1.0)
        verdict = self._training.judge()
        metrics |= verdict.metrics
        self._curves.add("round", metrics, opened.number)
        failure = "" if verdict.ok else f"offline gate: {verdict.reason}"
        return Trained(failure, verdict.reason, metrics, [pair.event_id for pair in pairs])

    def _choose_pairs(self, opened: rounds.OpenRound, parent: Published) -> list[Pair]:
        """Set the policy where it starts, and draw what it trains on: what stable has not seen, and replay.

        Every few published rounds it starts from the base, with replay for all it knew: chains of adapters fail to
        recover (2505.18126).
        """
        dpo = self._settings.trainer.dpo
        seen = int(parent.manifest.settings.get("last_preference_id", 0))
        with self._database.connect() as connection:
            num_published = rounds.count_published(connection)
            old = [pair for _, pair in preferences.load_between(connection, 0, seen)]
            new = [pair for _, pair in preferences.load_between(connection, seen, opened.last_preference_id)]
        restarts = bool(dpo.restart_every and num_published and num_published % dpo.restart_every == 0)
        self._stack.reset_adapter("policy", like=None if restarts else "stable")
        rng = random.Random(f"{self._settings.trainer.seed}-pairs-{opened.number}")
        if restarts:
            new, old = old + new, []
        return choose_round_pairs(new, old, max_new=dpo.max_new_pairs, replay_share=dpo.replay_share, rng=rng)

    def _report(self, number: int, share: float, step: dict[str, float]) -> None:
        self._check_stopping()
        self._board.update_round(progress=share)
        self._metrics.round_progress.set(share)
        self._curves.add(f"dpo/round-{number:03d}", step, round(share * 1000))

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise RoundAborted

    def _publish_round(self, opened: rounds.OpenRound, parent: Published, trained: Trained) -> str:
        self._board.update_round(state="publishing")
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
        self._metrics.rounds.labels(outcome).inc()
        log.info("round %d %s: %s", number, f"published {checkpoint}" if checkpoint else outcome, reason)
        self._show()
        self._wait("idle", f"round {number} {outcome}: {reason}")

    def _close_published_round(self) -> None:
        """A crash, or a database that was gone, between the rename and the record: the manifest says which round it was."""
        with self._database.connect() as connection:
            opened = rounds.find_open_round(connection)
        if opened and (published := self._publisher.find_of_round(opened.number)):
            manifest = published.manifest
            self._finish(opened.number, "published before its record closed", manifest.id, manifest.metrics)

    # What others see

    def _wait(self, state: str, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            log.info("%s: %s", state, reason)
        self._board.update_round(state=state, reason=reason, progress=0.0)

    def _show(self) -> None:
        show_inbox(self._database, self._board, self._metrics, self._settings.trainer.round_every_preferences)
        published = self._publisher.published
        self._board.update(checkpoint=published[-1].manifest.id if published else None)
        self._metrics.checkpoints.set(len(published))


def show_inbox(database: sa.Engine, board: Board, metrics: Metrics, round_every: int) -> None:
    """Put what the trainer's database knows on the board. Any thread may."""
    with database.connect() as connection:
        totals = preferences.count_totals(connection)
        after_id, _ = rounds.last_finished(connection)
        new = preferences.count_after(connection, after_id)
        finished = rounds.list_finished(connection)
        num_dead = inbox.count_dead_letters(connection)
    board.update(
        preferences=totals.usable,
        decisive=totals.decisive,
        uses=totals.uses,
        new_since_round=new.decisive,
        round_every=round_every,
        rounds=finished,
        dead_letters=num_dead,
    )
    metrics.preferences.set(totals.usable)
    metrics.dead_letters.set(num_dead)


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """`loss 0.61, accuracy 0.72`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
