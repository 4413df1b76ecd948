"""Adapters on vLLM's CPU engine by one product per adapter, where vLLM copies the adapter's weights for every token.

A plugin of vLLM (entry point `vllm.general_plugins`): every engine process that has prefloop installed loads it, and nothing
changes on a GPU. Tokens without an adapter get none: vLLM's own takes the last one loaded for them (vllm#48421).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Group = tuple[int, "slice | Tensor"]  # an adapter's place, and its tokens


def register() -> None:
    """What vLLM calls at the start of each of its processes."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        platform: Any = type(current_platform)
        platform.get_punica_wrapper = classmethod(lambda cls: f"{__name__}.GroupedLora")


def group_tokens(places: Tensor) -> list[Group]:
    """The adapters that a batch's tokens name, (tokens,) int64, -1 for none, with the tokens of each: a slice where they adjoin."""
    groups: list[Group] = []
    for place in sorted(set(places.tolist())):
        rows = (places == place).nonzero().squeeze(1)
        first, last = int(rows[0]), int(rows[-1])
        if place >= 0:
            groups.append((place, slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    return groups


def add_adapters(
    y: Tensor,
    x: Tensor,
    shrinking: tuple[Tensor, ...],
    expanding: tuple[Tensor, ...],
    scale: float,
    widths: tuple[int, ...],
    groups: list[Group],
) -> None:
    """y += scale * x A^T B^T of each token's adapter, for projections side by side.

    y: (tokens, sum of widths); x: (tokens, in); shrinking: of each projection all adapters' A, (places, 1, rank, in); expanding: B,
    (places, 1, width, rank).
    """
    for place, rows in groups:
        inputs, start = x[rows], 0
        for a, b, width in zip(shrinking, expanding, widths, strict=True):
            low = inputs @ a[place, 0].T
            added = (low if scale == 1.0 else low * scale) @ b[place, 0].T
            target = y[:, start : start + width]
            if isinstance(rows, slice):
                target[rows] += added
            else:
                target.index_add_(0, rows, added)
            start += width


def __getattr__(name: str) -> Any:
    """`GroupedLora`, made when vLLM asks for it: nothing of vLLM is imported before."""
    if name != "GroupedLora":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class GroupedLora(PunicaWrapperCPU):
        """vLLM's wrapper with its linear layers replaced; embeddings and logits stay its own."""

        _groups: list[Group] = []  # noqa: RUF012  # replaced whole by each batch

        def update_metadata(self, *arguments: Any, **named: Any) -> None:
            """A batch begins."""
            super().update_metadata(*arguments, **named)
            self._groups = group_tokens(self.token_lora_indices)

        def add_lora_linear(
            self,
            y: Tensor,
            x: Tensor,
            lora_a_stacked: tuple[Tensor, ...],
            lora_b_stacked: tuple[Tensor, ...],
            scale: float,
            output_slices: tuple[int, ...],
            **_: Any,
        ) -> None:
            """As vLLM says of it."""
            add_adapters(
                y.view(-1, y.shape[-1]),
                x.view(-1, x.shape[-1]),
                lora_a_stacked,
                lora_b_stacked,
                scale,
                output_slices,
                self._groups,
            )

    globals()[name] = GroupedLora
    return GroupedLora
