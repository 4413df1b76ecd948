"""What one person's playground shows of learning: the trainer's status, the trial, and which checkpoints are first and stable.

Texts of prompts and answers are never among it. What the trainer does is asked of the trainer; where it is away, that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.api.trainer_client import TrainerProblem, ask_trainer
from gateway.rollout.pure import machine
from gateway.tables.checkpoints import CheckpointRow, list_checkpoints
from gateway.tables.rollouts import active_rollout
from gateway.tables.serving import get_stable

if TYPE_CHECKING:
    from gateway.rollout.view import RolloutView
    from gateway.serving.context import Context

_MAX_REASON = 300


class Style(msgspec.Struct, frozen=True):
    """What one feature of an answer's text is worth: its weight, and how unsure that is."""

    name: str
    weight: float
    sd: float


class Learnt(msgspec.Struct, frozen=True):
    """The reward model. prequential_accuracy: of the last num_foreseen choices, each guessed before it was learnt from."""

    version: int = 0
    prequential_accuracy: float | None = None
    num_foreseen: int = 0
    style: tuple[Style, ...] = ()


class Doing(msgspec.Struct, frozen=True):
    """What the trainer does and why; progress: 0 to 1. seconds_left: of this state, None where that is not known."""

    state: str = "waiting"
    number: int | None = None
    progress: float = 0.0
    reason: str = ""
    seconds_left: float | None = None


class Finished(msgspec.Struct, frozen=True):
    """A round that ended, in a checkpoint or in a reason why not."""

    number: int
    checkpoint: str | None = None
    reason: str = ""


class TrainerView(msgspec.Struct, frozen=True):
    """Of the trainer's /status what the page shows. decisive: choices that prefer one answer."""

    decisive: int = 0
    new_since_round: int = 0
    round_every: int = 0
    reward: Learnt = Learnt()
    round: Doing = Doing()
    rounds: tuple[Finished, ...] = ()


class Trial(msgspec.Struct, frozen=True):
    """The rollout that is on, as that person sees it. unit: what `users` counts; note: the verdict in a sentence.

    may_decide: "approve" is possible now.
    """

    id: str
    checkpoint: str
    phase: str
    generation: int
    decision_digest: str
    note: str
    unit: str
    users: int
    min_users: int
    wins: int
    losses: int
    ties: int
    e: float
    threshold: float
    may_decide: bool


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows. operates: false, and nothing else, where the playground shows nothing of it.

    problem: why there is no trainer, empty if there is. first, stable: ids of checkpoint 0 and of the one that serves.
    """

    object: str = "playground.learning"
    operates: bool
    problem: str = ""
    first: str | None = None
    stable: str | None = None
    trainer: TrainerView | None = None
    trial: Trial | None = None


async def build_learning(context: Context) -> Learning:
    """What the page shows now."""
    policy = context.settings.policy
    stable, first, row = await context.writer.aread(
        lambda conn: (get_stable(conn, policy), find_first(list_checkpoints(conn)), active_rollout(conn, policy))
    )
    trainer, problem = await _ask_trainer(context)
    return Learning(
        operates=True,
        problem=problem,
        first=None if first is None else first.id,
        stable=None if stable is None else stable.id,
        trainer=trainer,
        trial=None if row is None else show_trial(await context.controller.assessor.show(row)),
    )


def show_trial(view: RolloutView) -> Trial:
    """What the person sees of it."""
    seen = view.evidence
    return Trial(
        id=view.id,
        checkpoint=view.checkpoint,
        phase=view.phase,
        generation=view.generation,
        decision_digest=view.decision_digest,
        note=view.verdict_sentence,
        unit=seen.unit,
        users=seen.users,
        min_users=seen.min_users,
        wins=seen.wins,
        losses=seen.losses,
        ties=seen.ties + seen.both_bad,
        e=seen.e,
        threshold=seen.threshold,
        may_decide=view.phase == machine.WAITING,
    )


async def _ask_trainer(context: Context) -> tuple[TrainerView | None, str]:
    """What the trainer says it does, or why that is not known."""
    try:
        found = await ask_trainer(context, "/status", TrainerView)
    except TrainerProblem as problem:
        return None, str(problem)
    doing = msgspec.structs.replace(found.round, reason=found.round.reason[:_MAX_REASON])
    last = tuple(msgspec.structs.replace(each, reason=each.reason[:_MAX_REASON]) for each in found.rounds[-1:])
    return msgspec.structs.replace(found, round=doing, rounds=last), ""


def find_first(rows: Sequence[CheckpointRow]) -> CheckpointRow | None:
    """Checkpoint 0, or what is left of the oldest ones."""
    return min(rows, key=lambda row: row.number, default=None)
