"""A reward model's state on disk: adapter, heads, moments, kept choices and record, as safetensors and JSON.

A model that is loaded and updated ends in the same bits as one that went on. Loading changes all or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.learn.reward.adapter import AdapterPart
from trainer.learn.reward.head import HeadPart
from trainer.learn.reward.mix import Mix
from trainer.learn.reward.prequential import Prequential
from trainer.learn.reward.reservoir import Reservoir
from trainer.math.choices import ChoiceFit
from trainer.model.adapters import AdapterMismatch
from trainer.model.backbone import Backbone

TENSORS, STATE = "reward.safetensors", "reward.json"
FORMAT = 2


class RewardState:
    """What a reward model has learnt: everything its next update and its scores hang on."""

    backbone: Backbone
    adapter: AdapterPart
    head: HeadPart
    reservoir: Reservoir
    fit: ChoiceFit
    centre: Tensor
    mix: Mix
    record: Prequential
    version: int
    now: Callable[[], float]

    def save(self, out_dir: str | Path) -> None:
        """Writes all that the next update needs: a model that is loaded goes on in the same bits."""
        _save(self, Path(out_dir))

    def load(self, path: str | Path) -> None:
        """Takes up where `save` left off. Whatever it raises (OSError, ValueError, AdapterMismatch), nothing was changed."""
        _load(self, Path(path))


def _save(model: RewardState, out: Path) -> None:
    """Writes the adapter as PEFT does, and the rest beside it."""
    model.backbone.adapters.save(model.adapter.adapter, out)
    tensors, state = collect(model)
    save_file(tensors, out / TENSORS)
    (out / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")


def _load(model: RewardState, path: Path) -> None:
    """Raises OSError, ValueError or AdapterMismatch, and then the model is as it was."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    try:
        tensors = load_file(path / TENSORS)
    except SafetensorError as error:
        raise AdapterMismatch(f"{path / TENSORS} is not readable: {error}") from error
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise AdapterMismatch("the reward model's state holds values that are not finite")
    before_adapter, before = model.backbone.adapters.state(model.adapter.adapter), collect(model)
    try:
        model.backbone.adapters.load(model.adapter.adapter, path)
        apply(model, tensors, state)
    except Exception as error:
        model.backbone.adapters.restore(model.adapter.adapter, before_adapter)
        apply(model, *before)
        if isinstance(error, KeyError | TypeError | RuntimeError):
            raise AdapterMismatch(f"the state is of another form: {error}") from error
        raise


def collect(model: RewardState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that the model's next step hangs on: tensors, and what JSON takes."""
    kept, ids = model.reservoir.state()
    groups = {
        "scale": model.head.standardiser.state_dict(),
        "adapter_scale": model.adapter.standardiser.state_dict(),
        "head": model.head.network.state_dict(),
        "head_loop": model.head.loop.state(),
        "adapter_loop": model.adapter.loop.state(),
        "kept": kept,
        "fit": {"weights": model.fit.weights, "covariance": model.fit.covariance, "centre": model.centre},
    }
    tensors = {
        f"{group}:{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    fit = {
        "first_place": model.fit.first_place,
        "log_nu": model.fit.log_nu,
        "rated_intercept": model.fit.rated_intercept,
    }
    state = {
        "format": FORMAT,
        "version": model.version,
        "fit": fit,
        "mix": {"head": model.mix.head, "adapter": model.mix.adapter},
        "steps": {"head": model.head.loop.step_number, "adapter": model.adapter.loop.step_number},
        "kept": ids,
        "record": model.record.state(),
    }
    return tensors, state


def apply(model: RewardState, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Puts a collected state into a model; raises what a state of another form raises, half done."""
    if state["format"] != FORMAT:
        raise AdapterMismatch(f"the state has format {state['format']}, not {FORMAT}")
    groups: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition(":")
        groups.setdefault(group, {})[name] = tensor
    record, version = Prequential.from_state(state["record"]), int(state["version"])
    model.reservoir.restore(groups["kept"], state["kept"], model.now())
    model.head.standardiser.load_state_dict(groups["scale"])
    model.adapter.standardiser.load_state_dict(groups["adapter_scale"])
    model.head.network.load_state_dict(groups["head"])
    model.head.loop.restore(groups["head_loop"], int(state["steps"]["head"]))
    model.adapter.loop.restore(groups["adapter_loop"], int(state["steps"]["adapter"]))
    model.fit = ChoiceFit(weights=groups["fit"]["weights"], covariance=groups["fit"]["covariance"], **state["fit"])
    model.centre = groups["fit"]["centre"]
    model.mix = Mix(**state["mix"])
    model.record, model.version = record, version
