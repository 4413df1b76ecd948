"""The judging step of a round over a real model: the offline gate, the reward part by part, and a rung of the ladder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import sqlalchemy as sa

from feedback.outages import describe_error
from trainer.judge.auditor import Auditor
from trainer.judge.frozen import FrozenSets, make_demonstration_rows
from trainer.judge.judge import judge_checkpoint, measure_rung
from trainer.judge.measures import Checkers
from trainer.judge.parts import ScoredOnce, describe_parts
from trainer.learn.rewards.checkers import Checker, list_functions
from trainer.learn.sampling.sampler import Sampler, SamplingParameters, choose_parameters
from trainer.run.course.rewards import RoundRewards
from trainer.run.course.task import Judged, Show, Task
from trainer.run.reward.auditor_keeper import AuditorKeeper
from trainer.run.rows import rows, signal_queries
from trainer.run.rows.prompts import draw_prompts
from trainer.settings import TrainerSettings
from trainer.text.pairs import Prompt
from trainer.text.rejected import Reject

if TYPE_CHECKING:
    from trainer.learn.reward.model import RewardModel
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.run.learner")

RECENT_PAIRS = 200  # the newest pairs, which say how apps have their answers sampled
LADDER_PROMPTS = 32  # held-out prompts that a rung asks, the newest, beside the frozen rows
BESIDE_FIRST = "asking it beside checkpoint 0"


class Asking(TypedDict):
    """How the gate and the ladder ask."""

    parameters: SamplingParameters
    heldout: Sequence[Prompt]
    checkers: Checkers
    seed: int


class Judging:
    """Holds adapter "policy" beside a parent. directory: of the auditor's states. load_frozen: the frozen sets as they are now."""

    def __init__(
        self,
        settings: TrainerSettings,
        backbone: Backbone,
        reward: RewardModel,
        rewards: RoundRewards,
        database: sa.Engine,
        directory: Path,
        sampler: Sampler,
        checkers: Sequence[Checker],
        load_frozen: Callable[[], FrozenSets],
        reject: Reject,
    ) -> None:
        section = settings.trainer
        self._settings, self._backbone, self._reward, self._rewards = settings, backbone, reward, rewards
        self._database, self._sampler, self._checkers = database, sampler, checkers
        self._load_frozen, self._reject = load_frozen, reject
        self._auditor = Auditor(
            backbone, section.reward, reject=reject, seed=section.seed, half_life_s=section.half_life_s
        )
        self._auditing = AuditorKeeper(
            self._auditor, database, directory, section.policy, reject, lambda: load_frozen().digests
        )

    def judge(self, task: Task) -> Judged:
        """The offline gate on adapter "policy" beside the parent, the reward part by part, and a rung if it passes."""
        section, show = self._settings.trainer, task.show
        self._backbone.adapters.load("stable", task.parent)
        show(0.0, "the auditor learns what is new")
        self._auditing.teach()
        auditor = self._auditor if self._auditor.may_judge else None
        scorer, frozen = ScoredOnce(self._reward), self._load_frozen()
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
            recent = rows.load_newest(connection, section.policy, RECENT_PAIRS, self._reject)
            taught = signal_queries.load_demonstrations(
                connection, section.policy, split="heldout", reject=self._reject
            )
        taught = taught[-section.gate.max_prompts :] if section.gate.max_prompts else []
        rewards = self._rewards.make(scorer)
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
            kind=task.plan.kind,
            look=task.plan.look,
            progress=show,
        )
        rung = None
        if verdict.ok and section.gate.ladder:
            show(1.0, BESIDE_FIRST)
            rung = self._measure_rung(auditor, frozen, asking, verdict.figures.get("kl_base", 0.0), show)
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

    def _measure_rung(
        self, auditor: Auditor | None, frozen: FrozenSets, asking: Asking, kl: float, show: Show
    ) -> dict[str, Any] | None:
        """Where the policy stands beside checkpoint 0; closing names both. None, logged, where it cannot be said."""
        fewer: Asking = {**asking, "heldout": asking["heldout"][-LADDER_PROMPTS:]}
        try:
            rung = measure_rung(
                self._backbone,
                self._sampler,
                {"reward": self._reward, "auditor": auditor} if auditor else {"reward": self._reward},
                frozen,
                self._settings.trainer.gate,
                **fewer,
                checkpoint="",
                first="",
                kl=kl,
                hear=lambda share: show(1.0, BESIDE_FIRST),
            )
        except Exception as error:  # a checkpoint that passed is published for all that
            log.warning("the ladder has no rung of this round: %s", describe_error(error))
            return None
        return rung.as_dict() if rung else None

    def _describe_record(self) -> dict[str, float]:
        """What drift is told by, beside the gate's figures: how much the reward model foresaw."""
        record = self._reward.record
        return {"reward_accuracy": record.accuracy} if record.count[1] else {}
