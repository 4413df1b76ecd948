"""The optimizer's steps of a training run: micro-batches that add up, clipping, a schedule, and exact resume.

Promises that a run which was killed between two steps, and goes on from its snapshot, ends in the same bits. A step that is
not finite changes nothing. Does not know what is learnt: losses come from outside, each divided by its step's global weight.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from feedback.durable import replacing
from trainer.learn.isolation import NotFinite
from trainer.model.sharding import count_processes, find_rank, take_least

log = logging.getLogger("trainer.learn")

Part = Callable[[], tuple[Tensor, dict[str, float]]]
"""A micro-batch: its share of the step's loss, and figures that add up over the parts."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then decay to nothing. lr is the peak of groups that have none of their own, which are scaled alike."""

    lr: float
    num_steps: int
    warmup_share: float = 0.1
    decay: Literal["linear", "cosine", "none"] = "linear"

    def scale(self, step: int) -> float:
        """Share of the peak rate at a step, counted from 0; the first step after the last has 0 unless decay is "none"."""
        warmup = math.ceil(self.warmup_share * self.num_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.decay == "none":
            return 1.0
        left = max(0, self.num_steps - step) / max(1, self.num_steps - warmup)
        return left if self.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate: the peak of the schedule, or constant without one. lr None: the schedule's."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    lr: float | None = None


def find_rate(group: ParameterGroup, schedule: Schedule | None) -> float:
    """The group's peak rate. Raises ValueError where neither it nor the schedule says."""
    if group.lr is not None:
        return group.lr
    if schedule is None:
        raise ValueError(f"the group {group.name} has no learning rate")
    return schedule.lr


def add_up_over_processes(figures: dict[str, float], parameters: Iterable[nn.Parameter]) -> dict[str, float]:
    """Sums of gradients and figures over all processes of a torch.distributed run; alone, figures as they are.

    Each process computes its own micro-batches (see deal_parts) of the same step.
    """
    if count_processes() == 1:
        return figures
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
    added: list[dict[str, float] | None] = [None] * count_processes()
    distributed.all_gather_object(added, figures)
    return {name: sum((each or {}).get(name, 0.0) for each in added) for name in figures}


def deal_parts(parts: Sequence[Part]) -> list[Part]:
    """This process's share of a step's micro-batches: each process gets as many, since all take part in every forward.

    Where they do not come out even, a process computes one of them again, and it counts nothing.
    """
    number = count_processes()
    dealt = [*parts, *[_make_idle(parts[0])] * (-len(parts) % number)]
    return dealt[find_rank() :: number]


def _make_idle(part: Part) -> Part:
    def idle() -> tuple[Tensor, dict[str, float]]:
        loss, figures = part()
        return loss * 0.0, dict.fromkeys(figures, 0.0)

    return idle


class Loop:
    """AdamW over groups of parameters. `step_number` counts the steps taken; `memo` is kept in snapshots (JSON)."""

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        schedule: Schedule | None,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.schedule, self._clip, self._snapshots = schedule, clip, snapshots
        self.step_number = 0
        self.memo: dict[str, Any] = {}
        self._rates = [find_rate(group, schedule) for group in groups]
        self._named = {f"{group.name}/{name}": p for group in groups for name, p in group.parameters.items()}
        if not self._named:
            raise ValueError("there is nothing to train")
        self._optimizer = torch.optim.AdamW(
            [
                {"params": list(group.parameters.values()), "lr": rate}
                for group, rate in zip(groups, self._rates, strict=True)
            ],
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self._named.values())).device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that it holds, group by group."""
        return list(self._named.values())

    def step(
        self, parts: Sequence[Part], accept: Callable[[dict[str, float]], bool] = lambda figures: True
    ) -> dict[str, float]:
        """Add up the parts' gradients and take one step; returns the parts' figures, summed, with loss, grad_norm and lr.

        Figures that `accept` refuses leave all as it was, and lr is 0. Raises NotFinite, and whatever a part raises, with nothing
        changed.
        """
        self._optimizer.zero_grad(set_to_none=True)
        generator = torch.get_rng_state()
        try:
            figures = add_up_over_processes(self._accumulate(parts), self._named.values())
            norm = torch.nn.utils.clip_grad_norm_(self._named.values(), self._clip or math.inf)
            if not (math.isfinite(figures["loss"]) and torch.isfinite(norm)):
                raise NotFinite(f"the loss is {figures['loss']}, its gradient's norm {norm.item()}")
            if not accept(figures):
                torch.set_rng_state(generator)
                return {**figures, "grad_norm": norm.item(), "lr": 0.0}
            scale = 1.0 if self.schedule is None else self.schedule.scale(self.step_number)
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * scale
            self._optimizer.step()
        except BaseException:
            torch.set_rng_state(generator)
            raise
        finally:
            self._optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        if self._snapshots is not None and self.step_number % self._snapshots.every == 0:
            self._snapshots.save(self)
        return {**figures, "grad_norm": norm.item(), "lr": self._rates[0] * scale}

    def _accumulate(self, parts: Sequence[Part]) -> dict[str, float]:
        figures: dict[str, float] = {"loss": 0.0}
        for part in parts:
            loss, added = part()
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.item(), **added}.items():
                figures[name] = figures.get(name, 0.0) + value
        return figures

    def state(self) -> dict[str, Tensor]:
        """Copies of parameters, moments and random generators; with step_number and memo all that a run consists of."""
        state = {f"parameter/{name}": p.detach() for name, p in self._named.items()}
        for name, parameter in self._named.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"{key}/{name}"] = value
        state["rng/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            state["rng/cuda"] = torch.cuda.get_rng_state()
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor], step_number: int, memo: Mapping[str, Any] | None = None) -> None:
        """Take up a state. Raises ValueError, with nothing changed, if it is of other parameters."""
        for name, parameter in self._named.items():
            kept = state.get(f"parameter/{name}")
            if kept is None or kept.shape != parameter.shape:
                raise ValueError(f"the state has no fitting {name}")
        if len(self._named) != sum(name.startswith("parameter/") for name in state):
            raise ValueError("the state is of more parameters")
        self._optimizer.state.clear()
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(state[f"parameter/{name}"])
                if f"step/{name}" in state:
                    moments = {key: state[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
                    self._optimizer.state[parameter] = {
                        "step": state[f"step/{name}"].clone(),
                        **{key: value.to(parameter.device, copy=True) for key, value in moments.items()},
                    }
        torch.set_rng_state(state["rng/cpu"])
        if "rng/cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng/cuda"])
        self.step_number, self.memo = step_number, dict(memo or {})


class SnapshotsDiffer(Exception):
    """A shared directory shows the newest snapshot to some nodes only: they begin again, and it has come by then."""


class Snapshots:
    """The newest state of a run in one file, replaced by one rename. Of several processes the first writes, all read."""

    def __init__(self, directory: Path, every: int) -> None:
        if every < 1:
            raise ValueError("a snapshot is taken every so many steps, at least 1")
        self.directory, self.every = directory, every

    @property
    def path(self) -> Path:
        """The snapshot, which may not be there."""
        return self.directory / "snapshot.safetensors"

    def save(self, loop: Loop) -> None:
        """Write the loop's state, then put it in the place of the one before."""
        if find_rank() > 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"step_number": loop.step_number, "memo": loop.memo})
        with replacing(self.path) as written:
            save_file(loop.state(), written, metadata={"loop": about})

    def restore(self, loop: Loop) -> bool:
        """Take the loop to the snapshot; False, and nothing changed, if there is none that fits.

        Raises SnapshotsDiffer where processes read different ones.
        """
        was_restored = self._restore(loop)
        step_number = loop.step_number if was_restored else -1
        if count_processes() > 1 and take_least(step_number, loop.device) != step_number:
            raise SnapshotsDiffer(f"this process reads the snapshot of step {step_number}, another an older one")
        return was_restored

    def _restore(self, loop: Loop) -> bool:
        if not self.path.exists():
            return False
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["loop"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            loop.restore(state, int(about["step_number"]), about["memo"])
        except (SafetensorError, KeyError, ValueError) as error:
            log.warning("the snapshot %s is of no use, the run begins again: %s", self.path, error)
            return False
        return True
