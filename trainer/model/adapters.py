"""LoRA adapters side by side on one base: `policy`, `stable`, `reward`, `auditor`, `value`.

Promises that a forward under one adapter leaves no trace on another: exactly the adapter in training takes gradients.
One thread at a time. Written as PEFT and vLLM read them; heads are not here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.model.frozen_linear import FrozenLinear

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class AdapterMismatch(Exception):
    """An adapter's tensors do not fit the base model: names, shapes or values."""


class Adapters:
    """The adapters of one base. Made of a causal LM, whose layers are replaced by PEFT's in place."""

    NAMES = ("policy", "stable", "reward", "auditor", "value")

    def __init__(self, model: Any, *, rank: int, alpha: int, target_modules: str | list[str] = "all-linear") -> None:
        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=target_modules, task_type="CAUSAL_LM"
        )
        self.peft: Any = get_peft_model(model, config, adapter_name=self.NAMES[0])
        for name in self.NAMES[1:]:
            self.peft.add_adapter(name, deepcopy(config))
        self.rank, self.alpha = rank, alpha
        self._layers: list[Any] = [module for module in self.peft.modules() if isinstance(module, BaseTunerLayer)]
        self._activate(None)

    @property
    def shape(self) -> dict[str, int]:
        """The settings of a model section that another process needs for adapters of this shape."""
        return {"lora_rank": self.rank, "lora_alpha": self.alpha}

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's LoRA matrices by name."""
        found = {n: p for n, p in self.peft.named_parameters() if f".{name}." in n and "lora_" in n}
        if not found:
            raise ValueError(f"there is no adapter {name!r}")
        return found

    def reset(self, name: str, like: str | None = None, *, is_blank: bool = False) -> None:
        """Copy another adapter's weights, or start anew with B = 0, which answers exactly as the base does.

        is_blank: copy its A alone, and have B = 0.
        """
        if like is None:
            for layer in self._layers:
                layer.reset_lora_parameters(name, True)
        else:
            source = self.parameters_of(like)
            with torch.no_grad():
                for key, parameter in self.parameters_of(name).items():
                    parameter.copy_(source[key.replace(f".{name}.", f".{like}.")])
                    if is_blank and "lora_B" in key:
                        parameter.zero_()
        self._activate(None)

    def follow(self, name: str, leader: str, keep: float) -> None:
        """Move an adapter's matrices towards another's: keep (0 to 1) of its own, the rest of the leader's."""
        source = self.parameters_of(leader)
        with torch.no_grad():
            for key, parameter in self.parameters_of(name).items():
                parameter.lerp_(source[key.replace(f".{name}.", f".{leader}.")], 1 - keep)

    def state(self, name: str) -> dict[str, Tensor]:
        """Copies of the adapter's tensors on the CPU, under PEFT's names."""
        state = get_peft_model_state_dict(self.peft, adapter_name=name)
        return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in state.items()}

    def restore(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Overwrite an adapter. Raises AdapterMismatch before anything was changed."""
        expected = get_peft_model_state_dict(self.peft, adapter_name=name)
        if state.keys() != expected.keys():
            raise AdapterMismatch(f"unknown or missing tensors: {sorted(state.keys() ^ expected.keys())[:3]}")
        for key, tensor in state.items():
            if tensor.shape != expected[key].shape or not torch.isfinite(tensor).all():
                raise AdapterMismatch(f"{key}: wrong shape or values that are not finite")
        set_peft_model_state_dict(self.peft, dict(state), adapter_name=name)
        self._activate(None)

    def save(self, name: str, directory: str | Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json, as PEFT and vLLM read them."""
        out = Path(directory)
        out.mkdir(parents=True, exist_ok=True)
        save_file(self.state(name), out / TENSORS)
        config = self.peft.peft_config[name].to_dict()
        config.update(inference_mode=True, target_modules=sorted(config["target_modules"]))
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        (out / CONFIG).write_text(json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")

    def load(self, name: str, directory: str | Path) -> None:
        """Overwrite an adapter from a directory. Raises AdapterMismatch before anything was changed."""
        try:
            state = load_file(Path(directory) / TENSORS)
        except SafetensorError as error:
            raise AdapterMismatch(f"{directory} has no readable tensors: {error}") from error
        self.restore(name, state)

    def _activate(self, name: str | None, trainable: bool = False) -> None:
        """Switch adapters; None is the bare base. PEFT's own switches leave requires_grad behind, so it is set here."""
        for layer in self._layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        for key, parameter in self.peft.named_parameters():
            parameter.requires_grad_(trainable and name is not None and f".{name}." in key and "lora_" in key)
        self.peft.train(trainable)

    @contextmanager
    def inferring(self, name: str | None) -> Iterator[None]:
        """Compute under an adapter (None: the base), without gradients."""
        self._activate(name)
        with torch.no_grad():
            yield

    @contextmanager
    def training(self, name: str) -> Iterator[list[nn.Parameter]]:
        """Train one adapter; yields its parameters, the only ones that take gradients."""
        parameters = self.parameters_of(name)
        self._activate(name, trainable=True)
        assert {n for n, p in self.peft.named_parameters() if p.requires_grad} == parameters.keys()
        try:
            yield list(parameters.values())
        finally:
            self._activate(None)

    @contextmanager
    def training_in_turn(self) -> Iterator[Callable[[str], None]]:
        """Train several adapters, one at a time; yields the function that switches to one.

        The backward pass of a forward must come before the next switch: after it, gradients are missing or wrong.
        """
        try:
            yield lambda name: self._activate(name, trainable=True)
        finally:
            self._activate(None)

    @contextmanager
    def training_base(self) -> Iterator[dict[str, nn.Parameter]]:
        """Train the base's own weights, adapters off; yields them by name, the only ones that take gradients.

        Raises ValueError where products' weights are held in bfloat16: a step would be lost in their rounding.
        """
        if any(isinstance(module, FrozenLinear) for module in self.peft.modules()):
            raise ValueError("the base's weights are held in bfloat16: load the model with dtype float32 to train them")
        self._activate(None)
        parameters = {n: p for n, p in self.peft.named_parameters() if "lora_" not in n}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        self.peft.train(True)
        try:
            yield parameters
        finally:
            self._activate(None)

    def unload(self) -> Any:
        """The base without adapters, as it was given; this object is of no use after that."""
        return self.peft.unload()
