"""Makes the plan of a round from what is stored, and reads a plan's rows.

What is drawn is decided in plan.py, which rows there are in pool.py. Writes nothing.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import sqlalchemy as sa

from trainer.judge.frozen import digest_prompt
from trainer.math.seeds import derive_seed
from trainer.run import rounds
from trainer.run.course.task import Rows, Training
from trainer.run.intake.quarantine import Quarantine
from trainer.run.publish import lineage
from trainer.run.publish.checkpoints import Published
from trainer.run.rounds import OpenRound
from trainer.run.rows import pool, signal_queries
from trainer.run.rows.plan import Draw, Plan, Start, count_labelled, draw_rows, find_code_version
from trainer.run.rows.prompts import draw_prompts
from trainer.run.rows.schedule import is_restart_due
from trainer.run.rows.weighing import describe_row
from trainer.sections.training import RoundKind
from trainer.settings import TrainerSection
from trainer.text.pairs import PromptRow

log = logging.getLogger("trainer.run.learner")

PROMPTS_A_LABELLED = 1.5  # sampled on for each pair that may be labelled


class Planner:
    """Plans rounds over one database. topic: whose offsets are a plan's watermark."""

    def __init__(
        self,
        settings: TrainerSection,
        topic: str,
        database: sa.Engine,
        quarantine: Quarantine,
        training: Training,
        now: Callable[[], float],
    ) -> None:
        self._settings, self._topic, self._database = settings, topic, database
        self._quarantine, self._training, self._now = quarantine, training, now

    def make_plan(
        self, opened: OpenRound, stable: Published, published: list[Published], reward_version: int, *, from_base: bool
    ) -> tuple[Plan, Rows]:
        """The plan of a round that begins from `stable`, with its rows; without any if there is none to learn from."""
        section, kind = self._settings, opened.kind
        serving = stable.manifest.id
        with pool.read_consistently(self._database) as connection:
            origins = lineage.load_origins(connection, published)
            reference = lineage.find_reference(serving, origins, {each.manifest.id for each in published})
            taught = lineage.list_taught_by(serving, origins)
            past = rounds.read_past(connection)
            num_before = rounds.count_beside(connection, serving)
            found = self._read_pool(connection, kind, taught)
            last_signal = signal_queries.find_last_signal(connection)
            asked = self._draw_prompts(connection, section.ppo.num_asked) if kind == "ppo" else []
        num_available = len(found.new) + len(found.old)
        is_due = kind == "dpo" and is_restart_due(
            section.dpo, past.published_since_restart, num_available, has_chain_failed=past.has_chain_failed
        )
        is_restart = from_base or is_due
        drawn = Draw([row.event_id for row in asked], [], 0) if kind == "ppo" else self._draw(opened, found, is_restart)
        plan = Plan(
            number=opened.number,
            kind=msgspec.convert(kind, RoundKind),
            policy=section.policy,
            parent=serving,
            start=choose_start(is_restart, reference),
            reference=reference,
            new=drawn.new,
            replayed=drawn.replayed,
            weights=[],
            num_left=drawn.num_left,
            num_available=num_available,
            watermark=found.watermark,
            last_preference_id=found.last_id,
            reward_version=reward_version,
            trigger_choice_at=opened.trigger_choice_at,
            seed=derive_seed(section.seed, "round", opened.number),
            settings=freeze_settings(section, opened.kind),
            code_version=find_code_version(),
            planned_at=self._now(),
            look=num_before + 1,
            last_signal_id=last_signal,
        )
        rows = self.load_rows(plan)
        plan = self._plan_labels(self._weigh(self._leave_out_frozen(plan, rows), rows))
        return plan, give_weights(plan, rows)

    def _read_pool(self, connection: sa.Connection, kind: str, taught: Sequence[str]) -> pool.Pool:
        whose = {"policy": self._settings.policy, "topic": self._topic}
        if kind == "sft":
            return pool.read_demonstrations(connection, **whose, taught=taught)
        return pool.read_pool(connection, **whose, taught=taught, edit_weight=self._settings.edit_weight)

    def _draw(self, opened: OpenRound, found: pool.Pool, is_restart: bool) -> Draw:
        return draw_rows(
            found.new,
            found.old,
            max_new=self._settings.dpo.max_new_pairs,
            replay_share=self._settings.dpo.replay_share,
            is_restart=is_restart,
            rng=random.Random(f"{self._settings.seed}-pairs-{opened.number}"),
        )

    def _draw_prompts(self, connection: sa.Connection, num: int) -> list[PromptRow]:
        """Recent prompts that answers are to be sampled to."""
        return draw_prompts(
            connection,
            self._settings.policy,
            num,
            split="train",
            frozen=self._training.list_frozen_prompts(),
            reject=self._quarantine.add,
        )

    def _leave_out_frozen(self, plan: Plan, rows: Rows) -> Plan:
        """The plan without rows whose question a frozen set asks."""
        frozen_prompts = self._training.list_frozen_prompts()
        if not frozen_prompts:
            return plan
        frozen = {row.event_id for row in rows if digest_prompt(row.prompt.messages) in frozen_prompts}
        if not frozen:
            return plan
        log.info("round %d leaves out %d rows: frozen prompt", plan.number, len(frozen))
        new, replayed = ([name for name in names if name not in frozen] for names in (plan.new, plan.replayed))
        return msgspec.structs.replace(plan, new=new, replayed=replayed, num_frozen=len(frozen))

    def _weigh(self, plan: Plan, rows: Rows) -> Plan:
        """The plan with the weights of its rows; a row that cannot be read weighs nothing. All prompts of PPO weigh alike."""
        if plan.kind == "ppo":
            return msgspec.structs.replace(plan, weights=[1.0] * len(plan.event_ids))
        planned = frozenset(plan.event_ids)
        weighed = [row for row in rows if row.event_id in planned]
        weights = self._training.weigh([describe_row(row, plan.planned_at) for row in weighed])
        by_id = dict(zip([row.event_id for row in weighed], weights, strict=True))
        return msgspec.structs.replace(plan, weights=[by_id.get(event_id, 0.0) for event_id in plan.event_ids])

    def _plan_labels(self, plan: Plan) -> Plan:
        """The plan with prompts for pairs that the reward model labels, some more than pairs: not every one gives a pair."""
        section = self._settings
        num = count_labelled(len(plan.event_ids), section.dpo.labelled_share) if plan.kind == "dpo" else 0
        if not num:
            return plan
        with self._database.connect() as connection:
            drawn = self._draw_prompts(connection, math.ceil(PROMPTS_A_LABELLED * num))
        return msgspec.structs.replace(plan, max_labelled=num, prompts=[row.event_id for row in drawn])

    def load_prompts(self, plan: Plan) -> list[PromptRow]:
        """The prompts of pairs that are to be labelled. Raises RowsMissing."""
        with self._database.connect() as connection:
            found = pool.load_pairs(connection, plan.policy, plan.prompts, 0.0, self._quarantine.add)
        return [PromptRow(pair.event_id, pair.prompt) for pair in found]

    def load_rows(self, plan: Plan) -> Rows:
        """The plan's rows with its weights, their own where it has none yet. Raises RowsMissing."""
        with self._database.connect() as connection:
            if plan.kind == "sft":
                texts = pool.load_demonstrations(connection, plan.policy, plan.event_ids, self._quarantine.add)
                return give_weights(plan, texts)
            pairs = pool.load_pairs(
                connection, plan.policy, plan.event_ids, self._settings.edit_weight, self._quarantine.add
            )
            return give_weights(plan, pairs)


def give_weights(plan: Plan, rows: Rows) -> Rows:
    """Those of the rows that the plan has, with its weights; all of them, with their own, where it has no weights yet."""
    if not plan.weights:
        return rows
    weights = dict(zip(plan.event_ids, plan.weights, strict=True))
    return [replace(row, weight=weights[row.event_id]) for row in rows if row.event_id in weights]  # type: ignore[return-value]


def choose_start(is_restart: bool, reference: str | None) -> Start:
    """Where the policy begins: at the checkpoint that serves, or for a restart at what stands for the base."""
    if not is_restart:
        return "stable"
    return "base" if reference is None else "reference"


def freeze_settings(section: TrainerSection, kind: str) -> dict[str, Any]:
    """The settings that a round of this kind trains by, as JSON holds them. sampling: where no pair says the app's."""
    if kind == "sft":
        return {"sft": section.sft.model_dump(mode="json")}
    sampling = {"temperature": section.gate.temperature, "max_tokens": section.gate.max_tokens}
    if kind == "ppo":
        rewards = section.rewards.model_dump(mode="json")
        return {"ppo": section.ppo.model_dump(mode="json"), "rewards": rewards, "sampling": sampling}
    return {"dpo": section.dpo.model_dump(mode="json"), "sampling": sampling}


def describe_plan(plan: Plan) -> dict[str, Any]:
    """What a manifest's settings say of the round that made the checkpoint."""
    return {
        "round": plan.number,
        "kind": plan.kind,
        "policy": plan.policy,
        "start": plan.start,
        "reference": plan.reference,
        "last_preference_id": plan.last_preference_id,
        "trigger_choice_at": plan.trigger_choice_at,
        "seed": plan.seed,
        "reward_version": plan.reward_version,
        "code_version": plan.code_version,
        **plan.settings,
    }
