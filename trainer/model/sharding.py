"""Splits the frozen base over the processes of a torch.distributed run by FSDP2, layer by layer.

Promises that each process holds its share of the layers' weights and one whole layer at a time. Adapters, embeddings, norms
outside layers and the lm_head stay whole on every process: adapters are small, take their gradients from their own
micro-batches, and learn/loop adds those up. So nothing that saves, loads or resets an adapter need know of shards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def count_processes() -> int:
    """Processes of the torch.distributed run; 1 without one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def find_rank() -> int:
    """This process's number among them, from 0."""
    return distributed.get_rank() if count_processes() > 1 else 0


def take_least(value: int, device: torch.device) -> int:
    """The smallest of the processes' values: what they must agree on, so that all take part in every forward."""
    if count_processes() == 1:
        return value
    agreed = torch.tensor(value, dtype=torch.long, device=device)
    distributed.all_reduce(agreed, distributed.ReduceOp.MIN)
    return int(agreed)


def find_layers(model: Any) -> list[nn.Module]:
    """The model's repeated blocks, as it names them itself. Raises ValueError if it names none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(f"{type(model).__name__} does not say what its layers are: it cannot be split over processes")
    return layers


def shard_base(causal_lm: Any, device: torch.device) -> None:
    """Split the weights of the model's layers over all processes and bring the rest to the device.

    causal_lm: with its adapters, the same on every process. The frozen weights must not be trained afterwards.
    """
    layers = find_layers(causal_lm)
    split = {id(p) for layer in layers for name, p in layer.named_parameters() if "lora_" not in name}
    whole = {p for p in causal_lm.parameters() if id(p) not in split}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for buffer in causal_lm.buffers():
        buffer.data = buffer.data.to(device)
    mesh = init_device_mesh(device.type, (count_processes(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(
        causal_lm.base_model, mesh=mesh, ignored_params=whole
    )  # has no weights of its own: it orders the layers
