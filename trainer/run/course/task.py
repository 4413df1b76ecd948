"""What a learner needs of learning, as a handful of functions: so that rounds can be tested with light ones.

Implemented over a real model in assembly.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trainer.run.rows.plan import Plan
from trainer.run.rows.weighing import Weigh
from trainer.text.labelled_rows import Labelled
from trainer.text.pairs import Demonstration, Pair, PromptRow

Rows = list[Pair] | list[Demonstration]
Progress = Callable[[float, Mapping[str, float]], None]
"""Called after every step with the share that is done, 0 to 1, and the step's figures."""

Show = Callable[[float, str], None]
"""Called now and then with the share of a phase that is done and what is being done, "" for what was said before."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict as it is kept: may it be published, why, and every figure.

    samples: {"prompt", "before", "after"}, for people. reward_parts: {"name", "weight", "before", "after"} of each part of the
    reward and of their sum. rung: where it stands on the ladder (judge/ladder.Rung), its checkpoint not yet named; None if it
    did not pass or was not measured.
    """

    ok: bool
    reason: str
    figures: dict[str, float] = {}
    samples: list[dict[str, str]] = []
    reward_parts: list[dict[str, Any]] = []
    rung: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One round's training and judging.

    rows: as the plan orders them, each with its weight; fewer than planned if some cannot be read. parent and reference:
    directories of checkpoints, reference None for the base. snapshots: where training keeps its state, and goes on from.
    prompts: those that the reward model is to label answers to. progress and show say how far it is; they and check_stopping raise
    RoundAborted once the process is to stop.
    """

    plan: Plan
    rows: Rows
    parent: Path
    reference: Path | None
    snapshots: Path
    progress: Progress
    prompts: Sequence[PromptRow] = ()
    show: Show = lambda share, step: None
    check_stopping: Callable[[], None] = lambda: None


def list_pairs(task: Task) -> list[Pair]:
    """The task's rows that are pairs."""
    return [row for row in task.rows if isinstance(row, Pair)]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The learning functions of one policy.

    reset makes adapter "policy" answer as the base does; save and load are of that adapter. weigh is of a round's rows.
    train moves the policy from where the plan says and returns metrics; killed and called again it gives the same. judge
    holds it beside the parent. list_frozen_prompts names what must not be trained on (judge/frozen.digest_prompt);
    list_foreseen gives (event id, whether it was foreseen) of recent choices. label samples answers of the policy that the
    task begins from, and pairs them by the reward model. tidy leaves nothing on the engines that no sampling needs; called
    while none is waited for.
    """

    reset: Callable[[], None]
    save: Callable[[Path], None]
    load: Callable[[Path], None]
    weigh: Weigh
    train: Callable[[Task], dict[str, float]]
    judge: Callable[[Task], Judged]
    has_something_to_learn: Callable[[], tuple[bool, str]]
    list_frozen_prompts: Callable[[], frozenset[str]] = frozenset
    list_foreseen: Callable[[], list[tuple[str, bool]]] = list
    label: Callable[[Task], Labelled] = lambda task: Labelled(reason="nothing here can label")
    tidy: Callable[[], None] = lambda: None
