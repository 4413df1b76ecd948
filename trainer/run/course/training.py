"""The training steps of rounds over one real backbone: adapters are put where a plan says, and learning is called.

One function a kind of round, and labelling for DPO. Decides nothing of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from feedback.manifest import read_manifest
from trainer.judge.parts import ScoredOnce
from trainer.learn.dpo import blame_row, make_preferences, run_dpo
from trainer.learn.dpo_step import Preference
from trainer.learn.loop import Snapshots
from trainer.learn.references import References
from trainer.learn.sampling.sampler import Sampler, choose_parameters
from trainer.learn.sft import Example, make_examples, train_examples
from trainer.learn.training import RATES
from trainer.learn.worker import Job
from trainer.run.course.labelling import label_answers
from trainer.run.course.nodes import Nodes
from trainer.run.course.ppo_training import train_ppo
from trainer.run.course.rewards import RoundRewards
from trainer.run.course.task import Task, list_pairs
from trainer.run.course.workers import train_in_processes
from trainer.sections.training import DpoSection, SftSection
from trainer.settings import TrainerSettings
from trainer.text.labelled_rows import Labelled
from trainer.text.pairs import Demonstration
from trainer.text.rejected import Reject
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from trainer.learn.reward.model import RewardModel
    from trainer.model.backbone import Backbone


class RoundTraining:
    """Trains adapter "policy" of one backbone."""

    def __init__(
        self,
        settings: TrainerSettings,
        backbone: Backbone,
        reward: RewardModel,
        rewards: RoundRewards,
        references: References,
        sampler: Sampler,
        reject: Reject,
    ) -> None:
        self._settings, self._backbone, self._reward, self._rewards = settings, backbone, reward, rewards
        self._references, self._sampler, self._reject = references, sampler, reject

    def train(self, task: Task) -> dict[str, float]:
        """Put the adapters where the plan says, and train "policy"; go on from a snapshot if there is one."""
        plan, reference = task.plan, task.reference
        if reference is not None:
            self._backbone.adapters.load("stable", reference)
        self._begin_policy(task)
        if self._settings.trainer.is_distributed and plan.kind != "ppo":
            return self._train_in_processes(task)
        snapshots = Snapshots(task.snapshots, self._settings.trainer.snapshot_every_steps)
        if plan.kind == "sft":
            return self._train_sft(task, snapshots)
        if plan.kind == "ppo":
            return train_ppo(self._backbone, self._sampler, self._reward, self._rewards, task, snapshots, self._reject)
        pairs = self._backbone.transcriber.encode_pairs(list_pairs(task), "round", self._reject)
        return run_dpo(
            self._backbone,
            pairs,
            DpoSection.model_validate(plan.settings["dpo"]),
            references=self._make_references(task),
            weights=[pair.pair.weight for pair in pairs],
            seed=plan.seed,
            snapshots=snapshots,
            progress=task.progress,
            reject=self._reject,
        )

    def _begin_policy(self, task: Task) -> None:
        """Put adapter "policy" where the plan says that it begins."""
        plan, adapters = task.plan, self._backbone.adapters
        if plan.start == "base":
            torch.manual_seed(plan.seed)  # what is drawn anew is drawn alike after a kill
            adapters.reset("policy")
        else:
            adapters.load("policy", task.parent if plan.start == "stable" else task.reference or task.parent)

    def label(self, task: Task) -> Labelled:
        """Pairs of fresh answers of the policy that the task begins from, labelled by the reward model."""
        self._begin_policy(task)
        parameters = choose_parameters(list_pairs(task), **task.plan.settings["sampling"])
        rewards = self._rewards.make(ScoredOnce(self._reward))
        return label_answers(
            self._backbone, self._sampler, self._reward, rewards, task, parameters, self._reject,
            hear=lambda share: task.show(share, ""),
        )  # fmt: skip

    def _make_references(self, task: Task) -> Callable[..., torch.Tensor]:
        """Log-probabilities under the task's reference, from the cache as far as they are there."""
        digest = "base" if task.reference is None else read_manifest(task.reference).digest
        adapter = None if task.reference is None else "stable"

        def get(answers: Sequence[EncodedAnswer]) -> torch.Tensor:
            def hear(share: float) -> None:
                task.show(0.0, f"log-probabilities under the reference, {share:.0%} of them")

            return self._references.get(self._backbone, answers, adapter, digest, hear)

        return get

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
        assert plan.kind != "ppo"
        directory = task.snapshots.with_name("workers")
        learnt = dict(plan.settings[plan.kind])
        learnt["lr"] = learnt["lr"] or RATES[self._backbone.preset]
        preferences: list[Preference] = []
        if plan.kind == "dpo":
            pairs = self._backbone.transcriber.encode_pairs(list_pairs(task), "round", self._reject)
            weights = [pair.pair.weight for pair in pairs]
            blame = blame_row(self._backbone, self._reject)
            preferences = make_preferences(pairs, self._make_references(task), weights, blame)
        job = Job(
            kind=plan.kind,
            base=self._settings.base,
            device=section.worker_device or self._backbone.device.type,
            model=section.model.model_dump() | adapters.shape,
            section=learnt,
            seed=plan.seed,
            engine_share=self._settings.engine_gpu_share,
            torch_threads=section.torch_threads,
            snapshots=os.path.relpath(task.snapshots, directory),  # each node has its own path to both
            snapshot_every=section.snapshot_every_steps,
            preferences=preferences,
            examples=self._make_examples(task) if plan.kind == "sft" else [],
        )
        return train_in_processes(
            job,
            directory,
            section.num_processes,
            self._find_nodes(),
            save_start=lambda directory: adapters.save("policy", directory),
            load_trained=lambda directory: adapters.load("policy", directory),
            progress=task.progress,
            check_stopping=task.check_stopping,
            reject=self._reject,
        )

    def _find_nodes(self) -> Nodes | None:
        """The nodes that train with this one, None for none."""
        section = self._settings.trainer
        if section.num_nodes == 1:
            return None
        return Nodes(section.num_nodes, section.rendezvous, self._settings.rounds_dir, section.nodes_wait_s)
