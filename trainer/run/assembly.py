"""The learning functions over one real backbone: what `Training` asks for, and what the reward keeper is given.

Imports torch. Decides nothing of its own: each function puts adapters where a plan says, and calls learn/ or judge/.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
import torch

from feedback.manifest import Probe, read_manifest
from trainer.judge.auditor import Auditor
from trainer.judge.frozen import FrozenSets, list_set_files, load_frozen_sets
from trainer.judge.judge import judge_checkpoint
from trainer.learn.checkers import list_functions, make_checkers
from trainer.learn.dpo import blame_row, make_preferences, run_dpo
from trainer.learn.dpo_step import Preference
from trainer.learn.engine_sampler import EngineSampler
from trainer.learn.loop import Snapshots
from trainer.learn.prequential import Count, something_to_learn
from trainer.learn.references import References
from trainer.learn.reward import RewardModel
from trainer.learn.sampling import LocalSampler, PreferredSampler, Sampler, choose_parameters
from trainer.learn.sft import Example, make_examples, train_examples
from trainer.learn.training import RATES
from trainer.learn.version_gate import VersionFigures, judge_version, read_figures
from trainer.learn.worker import Job
from trainer.model.backbone import Backbone
from trainer.run import rows
from trainer.run.training import Judged, Show, Task, Training
from trainer.run.weighing import Weigh, find_reliability, make_weigher
from trainer.run.workers import train_in_processes
from trainer.settings import DpoSection, SftSection, TrainerSettings
from trainer.text.pairs import Answer, Demonstration, Pair
from trainer.text.rejected import Reject
from trainer.text.transcript import EncodedAnswer

log = logging.getLogger("trainer.run.learner")

MAX_PROBE_TOKENS = 64
PROBE_TEXT = "Which of these two answers do you prefer, and why?"
RECENT_PAIRS = 200  # held-out pairs that say how apps have their answers sampled
AUDITOR_CHUNK = 16  # rows of one update of the auditor: whole ones alone, so that its state follows from its rows
BULK_CHUNKS = 20
HALF_LIFE_S = 90 * 86400.0  # a choice that old counts half


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
    ) -> None:
        section = settings.trainer
        self._settings, self._backbone, self.reward = settings, backbone, reward
        self._database, self._base_digest, self._reject = database, base_digest, reject
        self.auditor = Auditor(backbone, section.reward, reject=reject, seed=section.seed)
        self._audited: set[str] = set()
        self._references = References(settings.references_dir, base_digest)
        self._checkers = make_checkers(section.rewards.checkers)
        self._sampler = self._make_sampler()
        self._heldout: Count = (0, 0)

    def make_training(self) -> Training:
        """The functions that a learner calls."""
        adapters = self._backbone.adapters
        return Training(
            reset=lambda: adapters.reset("policy"),
            save=lambda directory: adapters.save("policy", directory),
            load=lambda directory: adapters.load("policy", directory),
            weigh=self.make_weigher(),
            train=self.train,
            judge=self.judge,
            has_something_to_learn=lambda: something_to_learn(self.reward.record, *self._heldout),
        )

    def make_weigher(self) -> Weigh:
        """Weights by what the reward model's record says of people."""
        return make_weigher(lambda: find_reliability(self.reward.record), HALF_LIFE_S)

    # Training

    def train(self, task: Task) -> dict[str, float]:
        """Put the adapters where the plan says, and train "policy"; go on from a snapshot if there is one."""
        plan, adapters = task.plan, self._backbone.adapters
        reference = task.reference
        if reference is not None:
            adapters.load("stable", reference)
        if plan.start == "base":
            torch.manual_seed(plan.seed)  # what is drawn anew is drawn alike after a kill
            adapters.reset("policy")
        else:
            adapters.load("policy", task.parent if plan.start == "stable" or reference is None else reference)
        if self._settings.trainer.num_processes > 1:
            return self._train_in_processes(task)
        snapshots = Snapshots(task.snapshots, self._settings.trainer.snapshot_every_steps)
        if plan.kind == "sft":
            return self._train_sft(task, snapshots)
        pairs = self._backbone.transcriber.encode_pairs(list_pairs(task), "round", self._reject)
        return run_dpo(
            self._backbone,
            pairs,
            DpoSection.model_validate(plan.settings["dpo"]),
            references=self._make_references(reference),
            weights=[pair.pair.weight for pair in pairs],
            seed=plan.seed,
            snapshots=snapshots,
            progress=task.progress,
            reject=self._reject,
        )

    def _make_references(self, reference: Path | None) -> Callable[..., torch.Tensor]:
        """Log-probabilities under the reference, from the cache as far as they are there."""
        digest = "base" if reference is None else read_manifest(reference).digest
        adapter = None if reference is None else "stable"
        return lambda answers: self._references.get(self._backbone, answers, adapter, digest)

    def _train_sft(self, task: Task, snapshots: Snapshots) -> dict[str, float]:
        return train_examples(
            self._backbone,
            self._make_examples(task),
            SftSection.model_validate(task.plan.settings["sft"]),
            seed=task.plan.seed,
            snapshots=snapshots,
            progress=task.progress,
            reject=self._reject,
        )

    def _make_examples(self, task: Task) -> list[Example]:
        """The task's demonstrations. Raises NothingToTrainOn."""
        encoded: list[tuple[Demonstration, EncodedAnswer]] = []
        for row in task.rows:
            assert isinstance(row, Demonstration)
            try:
                encoded.append((row, self._backbone.transcriber.encode_answer(row.prompt, row.answer)))
            except Exception as error:  # templates and tokenizers raise what they like
                self._reject(row.event_id, "round", error)
        return make_examples(
            [answer for _, answer in encoded], [row.event_id for row, _ in encoded], [row.weight for row, _ in encoded]
        )

    def _train_in_processes(self, task: Task) -> dict[str, float]:
        """Train in several processes, from the adapter as it stands; references are computed and cached by this one."""
        section, plan, adapters = self._settings.trainer, task.plan, self._backbone.adapters
        learnt = dict(plan.settings[plan.kind])
        learnt["lr"] = learnt["lr"] or RATES[self._backbone.preset]
        preferences: list[Preference] = []
        if plan.kind == "dpo":
            pairs = self._backbone.transcriber.encode_pairs(list_pairs(task), "round", self._reject)
            weights = [pair.pair.weight for pair in pairs]
            blame = blame_row(self._backbone, self._reject)
            preferences = make_preferences(pairs, self._make_references(task.reference), weights, blame)
        job = Job(
            kind=plan.kind,
            base=self._settings.base,
            device=section.worker_device or self._backbone.device.type,
            model=section.model.model_dump() | adapters.shape,
            section=learnt,
            seed=plan.seed,
            engine_share=self._settings.engine_gpu_share,
            torch_threads=section.torch_threads,
            snapshots=str(task.snapshots),
            snapshot_every=section.snapshot_every_steps,
            preferences=preferences,
            examples=self._make_examples(task) if plan.kind == "sft" else [],
        )
        return train_in_processes(
            job,
            task.snapshots.with_name("workers"),
            section.num_processes,
            save_start=lambda directory: adapters.save("policy", directory),
            load_trained=lambda directory: adapters.load("policy", directory),
            progress=task.progress,
            reject=self._reject,
        )

    # Judging

    def judge(self, task: Task, show: Show) -> Judged:
        """The offline gate on adapter "policy" beside the parent."""
        section = self._settings.trainer
        self._backbone.adapters.load("stable", task.parent)
        show(0.0, "the auditor learns what is new")
        self._teach_auditor()
        with self._database.connect() as connection:
            prompts = rows.list_prompts(connection, section.policy, section.gate.max_prompts, reject=self._reject)
            recent = rows.load_held_out(connection, section.policy, RECENT_PAIRS, self._reject)
        verdict = judge_checkpoint(
            self._backbone,
            self._sampler,
            self.reward,
            self.auditor if self.auditor.may_judge else None,
            self.load_frozen(),
            section.gate,
            parameters=choose_parameters(
                recent, temperature=section.gate.temperature, max_tokens=section.gate.max_tokens
            ),
            heldout=prompts[::-1],  # the newest last
            checkers=list_functions(self._checkers),
            round_number=task.plan.number,
            seed=task.plan.seed,
            progress=show,
        )
        samples = [
            {"prompt": each.question, "before": each.stable, "after": each.candidate} for each in verdict.examples
        ]
        return Judged(ok=verdict.ok, reason=verdict.reason, figures=verdict.figures, samples=samples)

    def _teach_auditor(self) -> None:
        """Have the auditor learn its rows, in whole chunks in the order of arrival; after a restart, all of them again."""
        with self._database.connect() as connection:
            pairs = rows.load_auditor(connection, self._settings.trainer.policy, reject=self._reject)
        new = [pair for pair in pairs if pair.event_id not in self._audited]
        chunks = [new[start : start + AUDITOR_CHUNK] for start in range(0, len(new), AUDITOR_CHUNK)]
        chunks = [chunk for chunk in chunks if len(chunk) == AUDITOR_CHUNK]
        if len(chunks) > BULK_CHUNKS:
            self.auditor.model.learn_in_bulk(chunks, total=len(chunks) * AUDITOR_CHUNK)
        else:
            for chunk in chunks:
                self.auditor.update(chunk, [])
        self._audited |= {pair.event_id for chunk in chunks for pair in chunk}

    def load_frozen(self) -> FrozenSets:
        """The operator's frozen sets, else those beside the base, and the shipped ones that are asked for."""
        files = list_set_files(self._settings.state_dir, self._settings.base, self._settings.trainer.gate.sets)
        return load_frozen_sets(files, self._settings.frozen_set)

    def _make_sampler(self) -> Sampler:
        section = self._settings.trainer.sampling
        local = LocalSampler(self._backbone, section.local_tokens)
        if not section.engines:
            return local
        engine = EngineSampler(self._backbone, section, self._settings.state_dir / "sampling")
        return PreferredSampler(engine, local, section.retry_after_s)

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

    # Versions of the reward model

    def measure_version(self, heldout: Count) -> dict[str, Any]:
        """What decides whether the newest version may be used, as JSON holds it."""
        self._heldout = heldout
        return asdict(read_figures(self.reward.record, heldout))


def refuse_version(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Why a version may not follow the one in use, by the figures of both; "" if it may."""
    new, last = (msgspec.convert(dict(figures), VersionFigures) for figures in (after, before))
    verdict = judge_version(new, last)
    for warning in verdict.warnings:
        log.warning("reward model: %s", warning)
    return "; ".join(verdict.failures)


def list_pairs(task: Task) -> list[Pair]:
    """The task's rows, which are pairs."""
    return [row for row in task.rows if isinstance(row, Pair)]
