"""The learning functions over one real backbone: what `Training` asks for, and what the reward keeper is given.

Imports torch. Puts the parts together: training.py trains, judging.py judges; both sample by the engines, rounds by the trainer
itself where `sampling.rounds_by` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.manifest import Probe
from trainer.judge.frozen import FrozenSets, list_set_files, load_frozen_sets
from trainer.learn.references import References
from trainer.learn.reward.model import RewardModel
from trainer.learn.reward.prequential import Count, find_reliability, something_to_learn
from trainer.learn.reward.version_gate import Comparison, VersionFigures, judge_version, read_figures
from trainer.learn.rewards.checkers import make_checkers
from trainer.learn.sampling.engine_client import Engine
from trainer.learn.sampling.engine_sampler import EngineSampler
from trainer.learn.sampling.first_tokens import Pacer, make_pacer
from trainer.learn.sampling.pacing import Pace
from trainer.learn.sampling.sampler import LocalSampler, PreferredSampler, Sampler
from trainer.model.backbone import Backbone
from trainer.run.course.judging import Judging
from trainer.run.course.rewards import RoundRewards
from trainer.run.course.task import Task, Training
from trainer.run.course.training import RoundTraining
from trainer.run.rows.weighing import Weigh, make_weigher
from trainer.settings import TrainerSettings
from trainer.text.pairs import Answer
from trainer.text.rejected import Reject

log = logging.getLogger("trainer.run.learner")

MAX_PROBE_TOKENS = 64
PROBE_TEXT = "Which of these two answers do you prefer, and why?"


class Learning:
    """One policy's backbone with reward model and auditor."""

    def __init__(
        self,
        settings: TrainerSettings,
        backbone: Backbone,
        reward: RewardModel,
        database: sa.Engine,
        base_digest: str,
        reject: Reject,
        on_pace: Callable[[Pace], None] = lambda pace: None,
    ) -> None:
        section = settings.trainer
        self._settings, self._backbone, self.reward = settings, backbone, reward
        self._pacer = make_pacer(section.sampling, section.gateway_url, on_pace)
        self._engine = self._make_engine(self._pacer)
        local = LocalSampler(backbone, section.sampling.local_tokens)
        sampler = self._prefer_engine(local)
        for_rounds = local if section.sampling.rounds_by == "trainer" else sampler
        checkers = make_checkers(section.rewards.checkers)
        rewards = RoundRewards(section, backbone, database, checkers, self.list_frozen_prompts, reject)
        references = References(settings.references_dir, base_digest)
        self._rounds = RoundTraining(settings, backbone, reward, rewards, references, for_rounds, reject)
        self._judging = Judging(
            settings,
            backbone,
            reward,
            rewards,
            database,
            settings.auditor_dir / base_digest[:12],
            sampler,
            checkers,
            self.load_frozen,
            reject,
        )
        self._heldout: Count = (0, 0)

    @property
    def engines(self) -> list[Engine]:
        """Those that it samples from, none if it samples alone."""
        return self._engine.engines if self._engine else []

    def make_training(self) -> Training:
        """The functions that a learner calls."""
        adapters, settings = self._backbone.adapters, self._settings.trainer
        return Training(
            reset=lambda: adapters.reset("policy"),
            save=lambda directory: adapters.save("policy", directory),
            load=lambda directory: adapters.load("policy", directory),
            weigh=self.make_weigher(),
            train=self._train,
            judge=self._judging.judge,
            has_something_to_learn=lambda: something_to_learn(
                self.reward.record, *self._heldout, settings.least_evidence
            ),
            list_frozen_prompts=self.list_frozen_prompts,
            list_foreseen=self.list_foreseen,
            label=self._rounds.label,
            tidy=self._engine.tidy if self._engine else lambda: None,
        )

    def _train(self, task: Task) -> dict[str, float]:
        """Training, with how fast it sampled beside people if it did."""
        self._pacer.forget()
        return {**self._rounds.train(task), **self._pacer.figures()}

    def make_weigher(self) -> Weigh:
        """Weights by what the reward model's record says of people."""
        return make_weigher(lambda: find_reliability(self.reward.record), self._settings.trainer.half_life_s)

    def list_foreseen(self) -> list[tuple[str, bool]]:
        """Recent decisive choices by event id, and whether the reward model foresaw them."""
        return [(row.event_id, row.is_right) for row in self.reward.record.decisive]

    def load_frozen(self) -> FrozenSets:
        """The operator's frozen sets, else those beside the base, and the shipped ones that are asked for."""
        files = list_set_files(self._settings.state_dir, self._settings.base, self._settings.trainer.gate.sets)
        return load_frozen_sets(files, self._settings.frozen_set)

    def list_frozen_prompts(self) -> frozenset[str]:
        """What a frozen set asks, which nothing learns from (judge/frozen.digest_prompt)."""
        return self.load_frozen().digests

    def _make_engine(self, pacer: Pacer) -> EngineSampler | None:
        section = self._settings.trainer.sampling
        if not section.engines:
            return None
        return EngineSampler(self._backbone, section, self._settings.state_dir / "sampling", pacer)

    def _prefer_engine(self, local: Sampler) -> Sampler:
        section = self._settings.trainer.sampling
        return PreferredSampler(self._engine, local, section.retry_after_s) if self._engine else local

    def make_probe(self) -> Probe:
        """What adapter "policy", and the base alone, say of a frozen prompt with its answer; never of a person's prompt."""
        facts = [row for row in self.load_frozen().rows if row.kind == "fact" and row.references]
        if facts:
            said = Answer(text=facts[0].references[0])
            encoded = self._backbone.transcriber.encode_answer(facts[0].prompt, said)
            ids = [*encoded.prompt, *encoded.answer]
        else:  # any tokens will do: no template, which a short context might not hold
            ids = list(self._backbone.tokenizer(PROBE_TEXT, add_special_tokens=False).input_ids)
        ids = ids[: min(MAX_PROBE_TOKENS, self._backbone.max_tokens)]
        return Probe(
            prompt_token_ids=ids,
            logprobs=self._backbone.prompt_logprobs(ids, "policy"),
            base_logprobs=self._backbone.prompt_logprobs(ids, None),
        )

    def measure_version(self, heldout: Count) -> dict[str, Any]:
        """What decides whether the newest version may be used, as JSON holds it."""
        self._heldout = heldout
        return asdict(read_figures(self.reward.record, heldout))


def refuse_version(figures: Mapping[str, Any], since: Comparison) -> str:
    """Why a version may not follow the one in use, by its figures and beside that one; "" if it may."""
    verdict = judge_version(msgspec.convert(dict(figures), VersionFigures), since)
    for warning in verdict.warnings:
        log.warning("reward model: %s", warning)
    return "; ".join(verdict.failures)
