"""A PPO round: samples from the policy adapter, rewards what it said, and moves it towards what was worth more than expected.

Goes on from its snapshot after a kill, at any iteration and any step of it: an iteration's experience is on disk before its first
step, and stays until a later iteration's snapshot is there. With samples of the trainer's own the same bits come out. Does not
choose prompts, nor what a reward is made of.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from feedback.faults import reach
from feedback.outages import describe_error
from trainer.learn.hearing import Hear, ignore_share
from trainer.learn.loop import Loop, ParameterGroup, Schedule, Snapshots
from trainer.learn.ppo.experience import Experience, ExperienceMaker, NothingLearnable, References
from trainer.learn.ppo.samples import PpoSamples
from trainer.learn.ppo.step import PpoStep, Row
from trainer.learn.ppo.value import ADAPTER, start_value
from trainer.learn.rewards.rewards import Rewards
from trainer.learn.sampling.sampler import EngineFailed, Sampler, SamplingParameters
from trainer.learn.steps import plan_steps
from trainer.learn.training import (
    Figures,
    Means,
    NothingToTrainOn,
    Progress,
    Task,
    ignore_progress,
    report_step,
    take_step,
)
from trainer.math.advantages import AdaptiveKl
from trainer.math.seeds import derive_seed
from trainer.model.heads import ValueHead
from trainer.model.logprobs import MOST_SHARED, group_by_prompt
from trainer.model.memory import release_memory
from trainer.sections.training import PpoSection
from trainer.text.pairs import PromptRow
from trainer.text.rejected import Reject, log_rejected

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.learn")

PART = "ppo"
RATES = {"tiny": 3e-4, "small": 5e-5, "gpu": 1e-5, "fsdp": 1e-5}  # peak learning rates of the policy by model preset
VALUE_RATES = {"tiny": 1e-3, "small": 2e-4, "gpu": 5e-5, "fsdp": 5e-5}
HEAD_FACTOR = 10  # how much faster the value head learns than its adapter
ANCHOR = "stable"  # the adapter that holds a reference which follows the policy


def run_ppo(
    backbone: Backbone,
    prompts: Sequence[PromptRow],
    section: PpoSection,
    *,
    sampler: Sampler,
    rewards: Rewards,
    parameters: SamplingParameters,
    reference: str | None,
    references: References | None = None,
    value: ValueHead | None = None,
    seed: int = 0,
    snapshots: Snapshots | None = None,
    progress: Progress = ignore_progress,
    hear: Hear = ignore_share,
    reject: Reject = log_rejected,
) -> dict[str, float]:
    """Train adapter "policy" from where it stands, and "value" beside it.

    rewards: anchored. reference: the adapter that KL is to, None for the base; references: log-probabilities of tokens that take
    its place. value: as start_value makes it, of a reward model; from nothing if None. snapshots: their directory holds the
    experience under way, too. hear: of an iteration's answers, while they are waited for. With section.reference_ema adapter
    "stable" is overwritten. reject: of prompts that cannot be encoded; an answer that fails is left out and counted, as what a
    person chose on its prompt is worth learning all the same.
    Returns figures of the last iteration, with reward_first and kl_first of the first one. Raises NothingToTrainOn if no answer
    could be learnt from.
    """
    usable = backbone.transcriber.list_usable(prompts, PART, reject)
    if not usable:
        raise NothingToTrainOn(f"{len(prompts)} prompts, none of them usable")
    head = start_value(backbone, seed=seed) if value is None else value
    anchor = start_reference(backbone, reference) if section.reference_ema else reference
    drawn = replace(
        parameters,
        temperature=max(parameters.temperature, section.min_temperature),
        top_p=1.0,  # what is never drawn is never learnt
        max_tokens=min(parameters.max_tokens, section.max_tokens),
    )

    def blame(event_id: str, error: Exception) -> None:
        if isinstance(error, EngineFailed) or not all(map(backbone.is_sound, ("policy", ADAPTER))):
            raise error
        log.warning("an answer to %s is left out of the round: %s", event_id, describe_error(error))

    maker = ExperienceMaker(
        backbone,
        section,
        head,
        rewards=rewards,
        reference=anchor,
        references=references,
        temperature=drawn.temperature,
        blame=blame,
    )
    return _Run(
        backbone=backbone,
        section=section,
        head=head,
        maker=maker,
        samples=PpoSamples(sampler, usable, section, drawn, seed=seed, blame=blame, hear=hear),
        loop=Loop(make_groups(backbone, section, head), make_schedule(section), eps=1e-5, clip=section.max_grad_norm),
        temperature=drawn.temperature,
        seed=seed,
        snapshots=snapshots,
        progress=progress,
        blame=blame,
    ).run()


def start_reference(backbone: Backbone, reference: str | None) -> str:
    """The adapter that will follow the policy, made to answer as the reference does."""
    if reference is None:
        backbone.adapters.reset(ANCHOR, like="policy", is_blank=True)
    elif reference != ANCHOR:
        backbone.adapters.reset(ANCHOR, like=reference)
    return ANCHOR


def make_groups(backbone: Backbone, section: PpoSection, head: ValueHead) -> list[ParameterGroup]:
    """What is trained, and the reference if it moves: it takes no gradients, but belongs to the run's state."""
    adapters, rate = backbone.adapters, section.value_lr or VALUE_RATES[backbone.preset]
    groups = [
        ParameterGroup("policy", adapters.parameters_of("policy"), section.lr or RATES[backbone.preset]),
        ParameterGroup("value", adapters.parameters_of(ADAPTER), rate),
        ParameterGroup("value_head", dict(head.named_parameters()), HEAD_FACTOR * rate),
    ]
    if section.reference_ema:
        groups.append(ParameterGroup("reference", adapters.parameters_of(ANCHOR), 0.0))
    return groups


def make_schedule(section: PpoSection) -> Schedule:
    """Over as many steps as there would be if no iteration ended early; every group has a peak of its own."""
    num_steps = section.iterations * section.epochs * section.minibatches
    return Schedule(0.0, num_steps, section.warmup_share, section.decay)


@dataclass
class _Run:
    """The iterations of one round. All that a later process must know of is the loop's, memo included, or in a file."""

    backbone: Backbone
    section: PpoSection
    head: ValueHead
    maker: ExperienceMaker
    samples: PpoSamples
    loop: Loop
    temperature: float
    seed: int
    snapshots: Snapshots | None
    progress: Progress
    blame: Callable[[str, Exception], None]
    looked_at: float = field(default_factory=time.monotonic)

    def run(self) -> Figures:
        """All iterations that are left. Returns the round's figures."""
        if self.snapshots is not None and not self.snapshots.restore(self.loop):
            self._forget_experience()  # of a run that cannot go on
            self.snapshots.save(self.loop)
        memo = self.loop.memo
        memo.setdefault("kl_coefficient", self.section.kl_coefficient)
        for iteration in range(memo.setdefault("iteration", 0), self.section.iterations):
            try:
                experience = self._take_in(iteration)
            except NothingLearnable as error:
                log.warning("iteration %d of PPO is passed over: %s", iteration, error)
                memo["passed_over"] = str(error)
                self._add_totals({"dropped": float(error.num_dropped), "failed": float(error.num_failed)})
            else:
                num_failed = self._learn(iteration, experience)
                self._add_totals({"failed": float(num_failed)})
                self._adapt(experience)
                release_memory()
            reach("ppo.learnt")
            memo.update(iteration=iteration + 1, position=0, rejected=[], means={})
            if self.snapshots is not None:
                self.snapshots.save(self.loop)
                self._forget_experience()
        if not self.loop.step_number:
            raise NothingToTrainOn(
                f"no answer of the policy's own can be learnt from: {memo.get('passed_over', 'every row failed')}"
            )
        return {**memo["last"], **memo["first"], **memo["totals"], "num_steps": float(self.loop.step_number)}

    def _forget_experience(self) -> None:
        assert self.snapshots is not None
        for path in self.snapshots.directory.glob("experience-*"):
            path.unlink()

    def _take_in(self, iteration: int) -> Experience:
        """The iteration's experience: from its file, or made and written. Raises NothingLearnable."""
        path = self.snapshots and self.snapshots.directory / f"experience-{iteration}.safetensors"
        if path:
            try:
                return Experience.load(path)
            except FileNotFoundError:
                pass
            except (SafetensorError, KeyError, ValueError) as error:
                log.warning("%s is of no use, its answers are sampled again: %s", path, error)
        self._count_seconds("other")
        rows, sampled = self.samples.take(iteration)
        self._count_seconds("sampling")
        reach("ppo.sampled")
        release_memory()  # each phase has batches of other sizes than the one before, which would not fit the holes that it left
        experience = self.maker.make(rows, sampled, self.loop.memo["kl_coefficient"])
        experience.figures["failed"] += self.samples.count_asked(iteration) - sum(map(len, sampled))
        release_memory()
        if path:
            experience.save(path)
        reach("ppo.measured")
        return experience

    def _learn(self, iteration: int, experience: Experience) -> int:
        """The steps of an iteration that are left; fewer if one of them has moved the policy far enough. Returns how many answers
        failed in them."""
        section, memo = self.section, self.loop.memo
        rows, steps = self._plan(iteration, experience)
        rejected = set(memo.setdefault("rejected", []))
        means = Means(memo.setdefault("means", {}))
        self.samples.begin(iteration + 1)
        with self.backbone.adapters.training_in_turn() as switch:
            step = PpoStep(self.backbone, section, self.head, experience, temperature=self.temperature, switch=switch)
            task = Task(
                rows,
                self.loop.parameters,
                step.make_parts,
                step.summarise,
                blame=lambda row, error: self.blame(experience.event_ids[row[0]], error),
                accept=step.is_near,
            )
            position = memo.get("position", 0)
            while position < len(steps):
                figures = take_step(self.loop, task, [i for i in steps[position] if i not in rejected], rejected)
                position += 1
                if figures:
                    means.add(figures, restart=False)
                    if figures["approximate_kl"] > section.max_approximate_kl:  # the step was not taken
                        position = len(steps)
                memo.update(position=position, rejected=sorted(rejected))
                self._count_seconds("other")
                if self.snapshots is not None and self.loop.step_number % self.snapshots.every == 0:
                    self.snapshots.save(self.loop)
                if figures:
                    share = (iteration + position / len(steps)) / section.iterations
                    shown = {**experience.figures, **figures, **self._describe_time(), "iteration": float(iteration)}
                    report_step(self.loop, self.snapshots, self.progress, share, shown)
        return sum(len(rows[i]) for i in rejected)

    def _plan(self, iteration: int, experience: Experience) -> tuple[list[Row], list[list[int]]]:
        """Answers in rows by their prompts, and the rows of each step."""
        shared = MOST_SHARED if self.backbone.shares_prompt else 1
        rows = [tuple(group) for group in group_by_prompt(experience.answers, shared)]
        ids = [f"{experience.event_ids[row[0]]} {row[0]}" for row in rows]
        size = -(-len(rows) // self.section.minibatches)
        seed = derive_seed(self.seed, "ppo", iteration)
        return rows, plan_steps(ids, [0] * len(rows), batch_size=size, epochs=self.section.epochs, seed=seed)

    def _adapt(self, experience: Experience) -> None:
        """What follows from an iteration: the price of KL, where the reference stands, and figures."""
        section, memo, figures = self.section, self.loop.memo, experience.figures
        if section.adaptive_kl:
            control = AdaptiveKl(section.kl_target, section.kl_horizon)
            memo["kl_coefficient"] = control.adapt(memo["kl_coefficient"], figures["kl"], int(figures["num_answers"]))
        if section.reference_ema:
            self.backbone.adapters.follow(ANCHOR, "policy", section.reference_ema)
        memo.setdefault("first", {f"{name}_first": figures[name] for name in ("reward", "kl")})
        memo["last"] = {**figures, **Means(memo["means"]).means(), **self._describe_time()}
        self._add_totals(figures)

    def _add_totals(self, figures: Figures) -> None:
        totals = self.loop.memo.setdefault("totals", {})
        for name in ("num_answers", "dropped", "failed"):
            totals[name] = totals.get(name, 0.0) + figures.get(name, 0.0)

    def _count_seconds(self, spent_on: str) -> None:
        """Add the time since the last call to what the round has spent on something."""
        now, seconds = time.monotonic(), self.loop.memo.setdefault("seconds", {"sampling": 0.0, "other": 0.0})
        seconds[spent_on] += now - self.looked_at
        self.looked_at = now

    def _describe_time(self) -> Figures:
        """share_generating: of the round's time that it waited for samples."""
        seconds = self.loop.memo["seconds"]
        return {"share_generating": seconds["sampling"] / max(1e-9, sum(seconds.values()))}
