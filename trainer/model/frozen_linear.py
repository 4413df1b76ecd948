"""Linear layers of a frozen base held in bfloat16 where that loses nothing: what autocast would round anew at every forward.

A model that was stored in bfloat16 and is held in float32 has products whose weights autocast copies to bfloat16 each time
they are used; for one token of an answer that copy is half of the work. Embeddings and norms stay as they are, so that
what layers add up is float32 as before. Gives the same numbers with autocast and without it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenLinear(nn.Linear):
    """A linear layer whose weight is bfloat16 and computes in its input's dtype, or in autocast's. It cannot be trained."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(layer.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        is_cast = torch.is_autocast_enabled(input.device.type)
        return F.linear(input, self.weight if is_cast else self.weight.to(input.dtype), self.bias)


def hold_in_bfloat16(model: nn.Module) -> int:
    """Replace the linear layers whose weights bfloat16 holds exactly, and return their number.

    An lm_head that shares the embedding's weight gets its own copy: 2 bytes a weight.
    """
    found = [(name, each) for name, each in model.named_modules() if type(each) is nn.Linear and is_exact(each.weight)]
    for name, layer in found:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, FrozenLinear(layer))
    return len(found)


def is_exact(weight: Tensor) -> bool:
    """Whether bfloat16 holds every number of a float32 tensor: the lower half of each is 0."""
    return weight.dtype == torch.float32 and not bool((weight.detach().view(torch.int32) & 0xFFFF).any())
