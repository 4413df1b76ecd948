"""One policy that learns from choices as they come: the reward model's updates, rounds, and what a round is made of.

Every function that learns is the trainer's own. No gate stands between a round and the next: what is measured is learning alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bench.learning.asking import Shares, ask_people
from bench.learning.people import People
from bench.learning.rounds import label_pairs, run_ppo_round
from bench.learning.stage import Stage
from bench.learning.third import ThirdSettings, run_third
from trainer.learn.dpo import run_dpo
from trainer.learn.reward.model import RewardModel
from trainer.learn.reward.prequential import find_reliability
from trainer.math.seeds import derive_seed
from trainer.math.weights import weigh_rows
from trainer.model.logprobs import score_answers
from trainer.run.rows.plan import draw_rows
from trainer.run.rows.schedule import is_restart_due
from trainer.run.rows.weighing import describe_row
from trainer.sections.reward import RewardSection
from trainer.sections.training import DpoSection, PpoSection
from trainer.text.pairs import Pair
from trainer.text.rejected import log_rejected


@dataclass(frozen=True)
class Manner:
    """How a policy learns. grid: choices after which there is a round, made by `update`: dpo, ppo or third.

    dpo, reward and ppo: settings that are not the product's defaults; third: of ThirdSettings.
    """

    grid: tuple[int, ...]
    shares: Shares = field(default_factory=Shares)
    dpo: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    ppo: dict[str, Any] = field(default_factory=dict)
    third: dict[str, Any] = field(default_factory=dict)
    update: str = "dpo"
    weighs_people: bool = True

    def resolve(self) -> dict[str, Any]:
        """Everything it says, defaults included, as JSON has it."""
        return asdict(self) | {
            "dpo": DpoSection(**self.dpo).model_dump(mode="json"),
            "reward": RewardSection(**self.reward).model_dump(mode="json"),
            "ppo": PpoSection(**self.ppo).model_dump(mode="json"),
            "third": asdict(ThirdSettings(**self.third)),
        }


class Learner:
    """Adapters policy and reward of the stage's backbone, from the base on; everything follows from the seed."""

    def __init__(self, stage: Stage, people: People, manner: Manner, seed: int) -> None:
        self.stage, self.people, self.manner, self.seed = stage, people, manner, seed
        backbone = stage.backbone
        torch.manual_seed(seed)
        for adapter in ("policy", "reward"):
            backbone.adapters.reset(adapter)
        self._section = RewardSection(**manner.reward)
        half_life_s = 0.0 if manner.weighs_people else None
        self.reward = RewardModel(backbone, self._section, seed=seed, half_life_s=half_life_s)
        self.pairs: list[Pair] = []
        self.num_learnt = 0  # pairs that the policy has learnt from
        self.num_rounds = 0
        self._since_restart = 0  # rounds that were kept since one began from the base
        self._has_chain_failed = self._was_restart = False
        self._rng = random.Random(f"learner-{seed}")
        self._replays: dict[str, int] = {}

    def ask(self, number: int) -> None:
        """So many more choices, between answers of the policy as it stands; the reward model learns from each block."""
        block = self._section.update_every_preferences
        while number > 0:
            size = min(block, number)
            new = ask_people(
                self.stage, self.people, size, self._rng,
                adapter="policy" if self.num_learnt else None, shares=self.manner.shares, reward=self.reward,
                first_number=len(self.pairs),
            )  # fmt: skip
            self.take(new[:size])
            number -= size

    def take(self, new: Sequence[Pair]) -> None:
        """Learn from a block of choices, and keep them for rounds."""
        self._update(new)
        self.pairs += new

    def _update(self, new: Sequence[Pair]) -> None:
        """As the trainer's reward keeper does: half new, half replayed, no pair more than max_replays times."""
        section = self._section
        known = [p for p in self.pairs if self._replays.get(p.event_id, 0) < section.max_replays]
        num = min(len(known), round(len(new) * section.replay_share / (1 - section.replay_share)))
        replay = self._rng.sample(known, num)
        for pair in replay:
            self._replays[pair.event_id] = self._replays.get(pair.event_id, 0) + 1
        self.reward.update(new, replay)

    def weigh(self, pairs: Sequence[Pair]) -> list[float]:
        """By how often the reward model foresaw each person's choices."""
        reliability = find_reliability(self.reward.record) if self.manner.weighs_people else {}
        return weigh_rows(
            [describe_row(pair, pair.chosen_at) for pair in pairs], reliability=reliability, half_life_s=0.0
        )

    def run_round(self) -> dict[str, float]:
        """A round on what is known by now, from the policy as it stands; returns its figures."""
        update = {"dpo": self._run_dpo, "ppo": self._run_ppo, "third": self._run_third}[self.manner.update]
        figures = update()
        self.num_rounds += 1
        return figures

    def keep_round(self) -> None:
        """The policy is what the last round made of it: what it learnt from is no longer new."""
        self.num_learnt = len(self.pairs)
        self._since_restart += 1
        self._has_chain_failed = False

    def drop_round(self) -> None:
        """The last round's policy was stopped, and stable is in its place again."""
        self._has_chain_failed = not self._was_restart

    def _run_ppo(self) -> dict[str, float]:
        section = PpoSection(**self.manner.ppo)
        return run_ppo_round(self.stage, self.reward, self.pairs, section, self._derive_seed())

    def _derive_seed(self) -> int:
        return derive_seed(self.seed, "round", self.num_rounds + 1)

    def _run_third(self) -> dict[str, float]:
        asked = {pair.prompt.key for pair in self.pairs}
        questions = [question for question in self.stage.questions if question.text in asked]
        return run_third(self.stage, self.reward, questions, ThirdSettings(**self.manner.third), self._derive_seed())

    def _run_dpo(self) -> dict[str, float]:
        """On what is new and what is replayed."""
        section = DpoSection(**self.manner.dpo)
        is_restart = self._was_restart = is_restart_due(
            section, self._since_restart, len(self.pairs), has_chain_failed=self._has_chain_failed
        )
        rows = self._draw_rows(section, is_restart)
        backbone = self.stage.backbone
        labelled = label_pairs(
            self.stage, self.reward, self.pairs, section,
            num_rows=len(rows), round_number=self.num_rounds + 1, seed=self._derive_seed(),
        )  # fmt: skip
        if is_restart:
            self._since_restart = 0
            torch.manual_seed(self.seed)
            backbone.adapters.reset("policy")
        weights = [*self.weigh(rows), *(pair.weight for pair in labelled)]
        weight_of = {pair.event_id: weight for pair, weight in zip([*rows, *labelled], weights, strict=True)}
        encoded = backbone.transcriber.encode_pairs([*rows, *labelled], "round", log_rejected)
        figures = run_dpo(
            backbone, encoded, section,
            references=lambda answers: score_answers(backbone, answers, None)[0],
            weights=[weight_of[each.pair.event_id] for each in encoded],
            seed=self._derive_seed(),
        )  # fmt: skip
        return figures | {"num_labelled": float(len(labelled))}

    def _draw_rows(self, section: DpoSection, is_restart: bool) -> list[Pair]:
        known = {pair.event_id: pair for pair in self.pairs}
        ids = list(known)
        drawn = draw_rows(
            ids[self.num_learnt :], ids[: self.num_learnt], max_new=section.max_new_pairs,
            replay_share=section.replay_share, is_restart=is_restart, rng=self._rng,
        )  # fmt: skip
        return [known[event_id] for event_id in (*drawn.new, *drawn.replayed)]
