"""The learning functions over one real backbone: what `Training` asks for, and what the reward keeper is given.

Imports torch. Decides nothing of its own: each function puts adapters where a plan says, and calls learn/ or judge/.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import sqlalchemy as sa
import torch

from feedback.manifest import Probe, read_manifest
from feedback.outages import describe_error
from trainer.judge.answers import HarmScreen
from trainer.judge.auditor import Auditor
from trainer.judge.frozen import FrozenSets, list_set_files, load_frozen_sets, make_demonstration_rows
from trainer.judge.judge import judge_checkpoint, measure_rung
from trainer.judge.measures import Checkers
from trainer.judge.parts import ScoredOnce, describe_parts
from trainer.learn.checkers import list_functions, make_checkers
from trainer.learn.dpo import blame_row, make_preferences, run_dpo
from trainer.learn.dpo_step import Preference
from trainer.learn.engine_sampler import EngineSampler
from trainer.learn.first_tokens import make_pacer
from trainer.learn.loop import Snapshots
from trainer.learn.outcomes import make_outcome_model
from trainer.learn.prequential import Count, something_to_learn
from trainer.learn.references import References
from trainer.learn.reward import RewardModel
from trainer.learn.rewards import Rewards, make_rewards
from trainer.learn.sampling import LocalSampler, PreferredSampler, Sampler, SamplingParameters, choose_parameters
from trainer.learn.sft import Example, make_examples, train_examples
from trainer.learn.training import RATES
from trainer.learn.version_gate import VersionFigures, judge_version, read_figures
from trainer.learn.worker import Job
from trainer.model.backbone import Backbone
from trainer.run import rows, signal_queries
from trainer.run.auditor_keeper import AuditorKeeper
from trainer.run.labelling import label_answers
from trainer.run.prompts import draw_prompts
from trainer.run.training import Judged, Show, Task, Training, list_pairs
from trainer.run.weighing import Weigh, find_reliability, make_weigher
from trainer.run.workers import train_in_processes
from trainer.sections.training import DpoSection, SftSection
from trainer.settings import TrainerSettings
from trainer.text.labelled_rows import Labelled
from trainer.text.pairs import Answer, Demonstration, Prompt
from trainer.text.rejected import Reject
from trainer.text.transcript import EncodedAnswer

log = logging.getLogger("trainer.run.learner")

MAX_PROBE_TOKENS = 64
PROBE_TEXT = "Which of these two answers do you prefer, and why?"
RECENT_PAIRS = 200  # held-out pairs that say how apps have their answers sampled
RECENT_SIGNALS = 5000  # whose outcomes the reward's outcome part is fitted to
LADDER_PROMPTS = 32  # held-out prompts that a rung asks, the newest, beside the frozen rows
DAY_S = 86_400.0


class Asking(TypedDict):
    """How the gate and the ladder ask."""

    parameters: SamplingParameters
    heldout: Sequence[Prompt]
    checkers: Checkers
    seed: int


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
        directory = settings.auditor_dir / base_digest[:12]
        self._auditing = AuditorKeeper(self.auditor, database, directory, section.policy, reject)
        self._references = References(settings.references_dir, base_digest)
        self._checkers = make_checkers(section.rewards.checkers)
        self._sampler = self._make_sampler()
        self._heldout: Count = (0, 0)

    def make_training(self) -> Training:
        """The functions that a learner calls."""
        adapters, settings = self._backbone.adapters, self._settings.trainer
        return Training(
            reset=lambda: adapters.reset("policy"),
            save=lambda directory: adapters.save("policy", directory),
            load=lambda directory: adapters.load("policy", directory),
            weigh=self.make_weigher(),
            train=self.train,
            judge=self.judge,
            has_something_to_learn=lambda: something_to_learn(
                self.reward.record, *self._heldout, settings.least_evidence
            ),
            list_frozen_prompts=lambda: self.load_frozen().digests,
            list_foreseen=self.list_foreseen,
            label=self.label,
        )

    def make_weigher(self) -> Weigh:
        """Weights by what the reward model's record says of people."""
        half_life_s = DAY_S * self._settings.trainer.recency_half_life_days
        return make_weigher(lambda: find_reliability(self.reward.record), half_life_s)

    # Training

    def train(self, task: Task) -> dict[str, float]:
        """Put the adapters where the plan says, and train "policy"; go on from a snapshot if there is one."""
        plan, reference = task.plan, task.reference
        if reference is not None:
            self._backbone.adapters.load("stable", reference)
        self._begin_policy(task)
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
        gate = self._settings.trainer.gate
        parameters = choose_parameters(list_pairs(task), temperature=gate.temperature, max_tokens=gate.max_tokens)
        rewards = self._make_rewards(ScoredOnce(self.reward))
        return label_answers(self._backbone, self._sampler, self.reward, rewards, task, parameters, self._reject)

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
        """The offline gate on adapter "policy" beside the parent, the reward part by part, and a rung if it passes."""
        section = self._settings.trainer
        self._backbone.adapters.load("stable", task.parent)
        show(0.0, "the auditor learns what is new")
        self._auditing.teach()
        auditor = self.auditor if self.auditor.may_judge else None
        scorer, frozen = ScoredOnce(self.reward), self.load_frozen()
        with self._database.connect() as connection:
            prompts = draw_prompts(
                connection, section.policy, section.gate.max_prompts, split="heldout", reject=self._reject
            )
            prompts += draw_prompts(
                connection,
                section.policy,
                section.gate.max_train_prompts,
                split="train",
                frozen=frozen.digests,
                reject=self._reject,
            )
            recent = rows.load_held_out(connection, section.policy, RECENT_PAIRS, self._reject)
            taught = signal_queries.load_demonstrations(
                connection, section.policy, split="heldout", reject=self._reject
            )
        taught = taught[-section.gate.max_prompts :] if section.gate.max_prompts else []
        rewards = self._make_rewards(scorer)
        asking: Asking = {
            "parameters": choose_parameters(
                recent, temperature=section.gate.temperature, max_tokens=section.gate.max_tokens
            ),
            "heldout": [row.prompt for row in prompts[::-1]],  # the newest last
            "checkers": list_functions(self._checkers),
            "seed": task.plan.seed,
        }
        verdict = judge_checkpoint(
            self._backbone,
            self._sampler,
            scorer,
            auditor,
            replace(frozen, rows=(*frozen.rows, *make_demonstration_rows(taught))),
            section.gate,
            **asking,
            rewards=rewards,
            round_number=task.plan.number,
            progress=show,
        )
        rung = None
        if verdict.ok and section.gate.ladder:
            show(1.0, "asking it beside checkpoint 0")
            rung = self._measure_rung(auditor, frozen, asking)
        samples = [
            {"prompt": each.question, "before": each.stable, "after": each.candidate} for each in verdict.examples
        ]
        return Judged(
            ok=verdict.ok,
            reason=verdict.reason,
            figures={**verdict.figures, **self._describe_record()},
            samples=samples,
            reward_parts=describe_parts(rewards, verdict.table),
            rung=rung,
        )

    def _make_rewards(self, scorer: ScoredOnce) -> Rewards:
        """The parts of the reward that the settings state, with outcomes as they are known now."""
        section = self._settings.trainer
        with self._database.connect() as connection:
            last = signal_queries.find_last_signal(connection)
            rated = signal_queries.load_rated(
                connection, section.policy, max(0, last - RECENT_SIGNALS), reject=self._reject
            )
        harm = HarmScreen.load(section.gate.harm_words)
        return make_rewards(
            section.rewards, scorer, self._checkers, is_harmful=harm.is_harmful, outcomes=make_outcome_model(rated)
        )

    def _measure_rung(self, auditor: Auditor | None, frozen: FrozenSets, asking: Asking) -> dict[str, Any] | None:
        """Where the policy stands beside checkpoint 0; closing names both. None, logged, where it cannot be said."""
        fewer: Asking = {**asking, "heldout": asking["heldout"][-LADDER_PROMPTS:]}
        try:
            rung = measure_rung(
                self._backbone,
                self._sampler,
                auditor or self.reward,
                frozen,
                self._settings.trainer.gate,
                **fewer,
                checkpoint="",
                first="",
                scored_by="auditor" if auditor else "reward",
            )
        except Exception as error:  # a checkpoint that passed is published for all that
            log.warning("the ladder has no rung of this round: %s", describe_error(error))
            return None
        return rung.as_dict() if rung else None

    def _describe_record(self) -> dict[str, float]:
        """What drift is told by, beside the gate's figures: how much the reward model foresaw."""
        record = self.reward.record
        return {"reward_accuracy": record.accuracy} if record.count[1] else {}

    def list_foreseen(self) -> list[tuple[str, bool]]:
        """Recent decisive choices by event id, and whether the reward model foresaw them."""
        return [(row.event_id, row.is_right) for row in self.reward.record.decisive]

    def load_frozen(self) -> FrozenSets:
        """The operator's frozen sets, else those beside the base, and the shipped ones that are asked for."""
        files = list_set_files(self._settings.state_dir, self._settings.base, self._settings.trainer.gate.sets)
        return load_frozen_sets(files, self._settings.frozen_set)

    def _make_sampler(self) -> Sampler:
        section = self._settings.trainer.sampling
        local = LocalSampler(self._backbone, section.local_tokens)
        if not section.engines:
            return local
        pacer = make_pacer(section, self._settings.trainer.gateway_url)
        engine = EngineSampler(self._backbone, section, self._settings.state_dir / "sampling", pacer)
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
