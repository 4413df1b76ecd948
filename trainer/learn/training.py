"""Runs planned optimizer steps: leaves out rows that cannot be learnt from, goes on from a snapshot, and sums up figures.

Every row is learnt from at most once a step: a step that fails is tried again without the rows to blame, which are found by
gradients that nobody applies. Does not know what a row is, or what is learnt from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from sqlalchemy.exc import SQLAlchemyError
from torch import nn

from feedback.errors import FeedbackError
from trainer.learn.isolation import NotFinite, RoundAborted, run_isolated
from trainer.learn.loop import Loop, Part, Snapshots, deal_parts
from trainer.model.sharding import count_processes

T = TypeVar("T")
Figures = dict[str, float]
Progress = Callable[[float, Figures], None]
"""Called after each step with the share done and the step's figures; may raise RoundAborted to stop the run."""

TAIL_SHARE = 0.25  # of the last epoch's steps: what a run ended with
RATES = {"tiny": 1e-3, "small": 2e-4, "gpu": 2e-5, "fsdp": 2e-5}  # peak learning rates of the policy by model preset


def ignore_progress(share: float, figures: Figures) -> None:
    """A `Progress` that does nothing."""


class NothingToTrainOn(ValueError):
    """No row was given that can be trained on."""


@dataclass(frozen=True)
class Task(Generic[T]):
    """What is learnt, and by which parameters. make_parts: the micro-batches of a step's rows; summarise: their summed figures
    as means.

    blame(row, error) is called for a row that fails alone: it puts the row aside, or raises the error if no row is to blame.
    accept: whether a step of these summed figures is taken.
    """

    rows: Sequence[T]
    parameters: Sequence[nn.Parameter]
    make_parts: Callable[[Sequence[T]], list[Part]]
    summarise: Callable[[Figures], Figures]
    blame: Callable[[T, Exception], None]
    accept: Callable[[Figures], bool] = lambda figures: True


def run_steps(
    loop: Loop,
    task: Task[T],
    steps: Sequence[Sequence[int]],
    *,
    steps_per_epoch: int,
    snapshots: Snapshots | None,
    progress: Progress,
) -> tuple[Figures, Figures]:
    """Take the planned steps (indices of task.rows), from the snapshot if there is one; the loop must not take its own.

    Returns mean figures of the last epoch and of its last quarter. Raises NothingToTrainOn if no step could be taken.
    """
    if snapshots is not None:
        snapshots.restore(loop)
    memo = loop.memo
    rejected: set[int] = set(memo.setdefault("rejected", []))
    epoch, tail = Means(memo.setdefault("epoch", {})), Means(memo.setdefault("tail", {}))
    begin_epoch = len(steps) - min(steps_per_epoch, len(steps))
    begin_tail = len(steps) - max(1, round(TAIL_SHARE * (len(steps) - begin_epoch)))
    for position in range(memo.get("position", 0), len(steps)):
        figures = take_step(loop, task, [i for i in steps[position] if i not in rejected], rejected)
        if figures:
            epoch.add(figures, restart=position <= begin_epoch)
            tail.add(figures, restart=position <= begin_tail)
        memo["position"], memo["rejected"] = position + 1, sorted(rejected)
        if snapshots is not None and (position + 1) % snapshots.every == 0:
            snapshots.save(loop)
        if figures:
            report_step(loop, snapshots, progress, (position + 1) / len(steps), figures)
    if not loop.step_number:
        raise NothingToTrainOn(f"{len(task.rows)} rows, none of them usable")
    return epoch.means(), tail.means()


def report_step(loop: Loop, snapshots: Snapshots | None, progress: Progress, share: float, figures: Figures) -> None:
    """Tell how far the run is; if that stops it, nothing of it is lost."""
    try:
        progress(share, figures)
    except (Exception, RoundAborted):
        if snapshots is not None:
            snapshots.save(loop)
        raise


class Means:
    """Sums of figures and their number, in a dictionary that snapshots keep."""

    def __init__(self, sums: dict[str, float]) -> None:
        self._sums = sums

    def add(self, figures: Figures, *, restart: bool) -> None:
        """Count a step in; with restart, those before it no longer count."""
        if restart:
            self._sums.clear()
        for name, value in {**figures, "": 1.0}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> Figures:
        return {name: value / self._sums[""] for name, value in self._sums.items() if name}


def take_step(loop: Loop, task: Task[T], chosen: Sequence[int], rejected: set[int]) -> Figures:
    """One step on rows, by their numbers; {} if none of them could be learnt from. Adds those that could not to `rejected`."""
    if not chosen:
        return {}
    try:
        return _step(loop, task, chosen)
    except (SQLAlchemyError, FeedbackError):
        raise
    except Exception as error:  # whatever a row can do to the model
        if count_processes() > 1 and not isinstance(error, NotFinite):
            raise  # the other processes know nothing of it: only what is added up fails for all alike
        before = len(rejected)
        _find_culprits(task, chosen, rejected)
        if len(rejected) == before:
            raise error
    left = [i for i in chosen if i not in rejected]
    return _step(loop, task, left) if left else {}


def _step(loop: Loop, task: Task[T], chosen: Sequence[int]) -> Figures:
    figures = loop.step(deal_parts(task.make_parts([task.rows[i] for i in chosen])), task.accept)
    return task.summarise(figures)


def _find_culprits(task: Task[T], chosen: Sequence[int], rejected: set[int]) -> None:
    """Halve the rows down to those whose gradients alone cannot be computed."""

    def try_gradients(some: Sequence[int]) -> None:
        for part in task.make_parts([task.rows[i] for i in some]):
            loss, _ = part()
            active = [parameter for parameter in task.parameters if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, active, allow_unused=True)
            if not all(torch.isfinite(tensor).all() for tensor in (loss, *gradients) if tensor is not None):
                raise NotFinite("the loss or its gradient is not finite")

    def blame(row: int, error: Exception) -> None:
        task.blame(task.rows[row], error)
        rejected.add(row)

    run_isolated(chosen, try_gradients, blame)
