"""The reward of a round over a real model: the sum of parts that the settings state, anchored where policies learn by it.

The anchors' means are kept beside the round's snapshots: killed and begun again, a round's rewards are the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from feedback.durable import write_durably
from trainer.judge.answers import HarmScreen
from trainer.learn.reward.outcomes import make_outcome_model
from trainer.learn.rewards.checkers import Checker, make_checkers
from trainer.learn.rewards.rewards import Rewards, Sample, Scorer, make_rewards
from trainer.run.reward.lessons import split_frozen
from trainer.run.rows import rows, signal_queries
from trainer.sections.reward import RewardsSection
from trainer.settings import TrainerSection
from trainer.text.pairs import Pair
from trainer.text.rejected import Reject

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.run.learner")

RECENT_SIGNALS = 5000  # whose outcomes the reward's outcome part is fitted to
ANCHOR_PAIRS = 64  # stored pairs whose answers are worth 0 on the mean
ANCHOR_FILE = "anchor.json"


class RoundRewards:
    """Makes the sum of one trainer's settings. list_frozen_prompts names those whose outcomes teach nothing."""

    def __init__(
        self,
        section: TrainerSection,
        backbone: Backbone,
        database: sa.Engine,
        checkers: Sequence[Checker],
        list_frozen_prompts: Callable[[], frozenset[str]],
        reject: Reject,
    ) -> None:
        self._section, self._backbone, self._database = section, backbone, database
        self._checkers, self._list_frozen_prompts, self._reject = checkers, list_frozen_prompts, reject

    def make(self, scorer: Scorer, last_signal: int | None = None, settings: RewardsSection | None = None) -> Rewards:
        """The parts that the settings state. last_signal: the newest whose outcome counts, None for all there are now.

        settings: those that a round was planned under, None for those of now. Raises ValueError for a checker that cannot be made.
        """
        section = self._section
        stated = section.rewards if settings is None else settings
        checkers = self._checkers if stated.checkers == section.rewards.checkers else make_checkers(stated.checkers)
        with self._database.connect() as connection:
            last = signal_queries.find_last_signal(connection) if last_signal is None else last_signal
            after = max(0, last - RECENT_SIGNALS)
            rated = signal_queries.load_rated(connection, section.policy, after, last, reject=self._reject)
        may_teach, _ = split_frozen(rated, self._list_frozen_prompts())
        harm = HarmScreen.load(section.gate.harm_words)
        return make_rewards(
            stated,
            scorer,
            checkers,
            is_harmful=harm.is_harmful,
            outcomes=make_outcome_model(may_teach),
        )

    def make_anchored(
        self, scorer: Scorer, directory: Path, settings: RewardsSection, last_preference: int, last_signal: int
    ) -> Rewards:
        """The same with mean 0 on stored answers, a fixed sample of the training pairs up to one of them.

        directory: keeps the means, and gives those that it has.
        """
        rewards, path = self.make(scorer, last_signal, settings), directory / ANCHOR_FILE
        try:
            rewards.means = dict(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError):
            with self._database.connect() as connection:
                pairs = rows.load_anchors(connection, self._section.policy, ANCHOR_PAIRS, last_preference, self._reject)
            rewards.anchor(self._encode(pairs))
            directory.mkdir(parents=True, exist_ok=True)
            write_durably(path, json.dumps(rewards.means).encode())
        return rewards

    def _encode(self, pairs: Sequence[Pair]) -> list[Sample]:
        """Both answers of each pair that can be encoded."""
        encoded = self._backbone.transcriber.encode_pairs(pairs, "anchor", self._reject)
        return [
            Sample(each.pair.prompt, answer, of_answer)
            for each in encoded
            for answer, of_answer in zip((each.pair.first, each.pair.second), each.answers, strict=True)
        ]
