"""Watches what the stable checkpoint does in traffic: drift beside its figures at judging, and how content people are.

Looks once every so many new choices. Says sentences and figures; decides nothing and rolls nothing back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict

import msgspec
import sqlalchemy as sa

from feedback.events import Choice
from feedback.inbox import preferences
from feedback.quality.satisfaction import load_opinions, measure_satisfaction
from trainer.judge.answers import HarmScreen
from trainer.judge.drift import Served, describe_drift, measure_live, read_served
from trainer.math.intervals import Estimate, estimate_mean
from trainer.run import rounds
from trainer.run.publish.registry import Gateway, GatewayRefused, GatewayUnavailable
from trainer.run.report.reporter import Reporter
from trainer.settings import TrainerSection
from trainer.text.pairs import make_answer, make_prompt

log = logging.getLogger("trainer.judge.drift")

LOOK_EVERY = 100  # new choices between two looks
MAX_CHOICES = 500  # the newest, whose answers are looked at
MAX_OPINIONS = 5000

Foreseen = Callable[[], Sequence[tuple[str, bool]]]
"""Recent decisive choices by event id, and whether the reward model foresaw them."""


class TrafficWatch:
    """One policy's. Used by the learner's thread alone."""

    def __init__(
        self,
        database: sa.Engine,
        gateway: Gateway,
        reporter: Reporter,
        settings: TrainerSection,
        list_foreseen: Foreseen,
    ) -> None:
        self._database, self._gateway, self._reporter = database, gateway, reporter
        self._policy, self._harm_words = settings.policy, settings.gate.harm_words
        self._list_foreseen = list_foreseen
        self._looked_at = -LOOK_EVERY  # the newest choice at the last look
        self._told: list[str] = []

    def look(self) -> None:
        """Look at the newest choices if enough are new. Without an answer of the gateway, at the next step again."""
        with self._database.connect() as connection:
            newest = connection.execute(sa.select(sa.func.coalesce(sa.func.max(preferences.c.id), 0))).scalar_one()
        if newest == 0 or newest - self._looked_at < LOOK_EVERY:
            return
        try:
            stable = self._gateway.read_state().stable
        except (GatewayUnavailable, GatewayRefused):
            return
        self._looked_at = newest
        with self._database.connect() as connection:
            opinions = load_opinions(connection, self._policy, MAX_OPINIONS)
            judged = rounds.find_metrics_of(connection, stable) if stable else None
            served, event_ids = self._load_served(connection, stable) if stable else ([], set())
        self._reporter.board.update(satisfaction=[asdict(each) for each in measure_satisfaction(opinions)])
        self._tell(stable, [] if judged is None else self._describe(judged, served, event_ids))

    def _describe(self, judged: dict[str, float], served: list[Served], event_ids: set[str]) -> list[str]:
        harm = HarmScreen.load(self._harm_words)
        live = measure_live(served, harm)
        foreseen = [(event_id, is_right) for event_id, is_right in self._list_foreseen() if event_id in event_ids]
        if live and foreseen:
            live["reward_accuracy"] = measure_foreseen(foreseen)
        return describe_drift(judged, live)

    def _tell(self, stable: str | None, sentences: list[str]) -> None:
        self._reporter.board.update(drift=sentences)
        self._reporter.metrics.drift.set(len(sentences))
        if sentences != self._told:
            self._told = sentences
            for sentence in sentences:
                log.warning("%s drifts: %s", stable, sentence)

    def _load_served(self, connection: sa.Connection, checkpoint: str) -> tuple[list[Served], set[str]]:
        """The checkpoint's answers to the newest choices, and the choices of which both answers are its own.

        Choices that cannot be read are left out and counted: learning sets them aside.
        """
        columns = preferences.c
        query = sa.select(columns.event_id, columns.prompt_key, columns.choice_json).where(
            columns.policy == self._policy
        )
        served: list[Served] = []
        own = set()
        num_unread = 0
        for row in connection.execute(query.order_by(columns.id.desc()).limit(MAX_CHOICES)):
            try:
                choice = msgspec.json.decode(row.choice_json, type=Choice)
                answers = [choice.comparison.first, choice.comparison.second]
                prompt = make_prompt(choice, row.prompt_key)
                mine = [read_served(prompt, make_answer(each)) for each in answers if each.checkpoint == checkpoint]
            except (ValueError, RecursionError):  # bytes that a disk changed, or a prompt that is no text
                num_unread += 1
                continue
            served += mine
            if len(mine) == len(answers):
                own.add(row.event_id)
        self._reporter.metrics.drift_unread.set(num_unread)
        if num_unread:
            log.info("drift is measured without %d of the newest choices, which cannot be read", num_unread)
        return served, own


def measure_foreseen(foreseen: Sequence[tuple[str, bool]]) -> Estimate:
    """The share of choices that were foreseen."""
    return estimate_mean([float(is_right) for _, is_right in foreseen], [event_id for event_id, _ in foreseen])
