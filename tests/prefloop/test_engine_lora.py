"""The engine's plugin against vLLM's own code for adapters on a CPU."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from prefloop.engine_lora import add_adapters, group_tokens

PLACES, RANK, IN, WIDTHS = 3, 4, 6, (5, 2)


def make_adapters() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    shrinking = tuple(torch.randn(PLACES, 1, RANK, IN) for _ in WIDTHS)
    return shrinking, tuple(torch.randn(PLACES, 1, width, RANK) for width in WIDTHS)


def test_tokens_are_grouped_by_their_adapter() -> None:
    assert group_tokens(torch.tensor([2, 2, 0])) == [(0, slice(2, 3)), (2, slice(0, 2))]
    assert group_tokens(torch.tensor([-1, 1, -1])) == [(1, slice(1, 2))]
    assert group_tokens(torch.tensor([], dtype=torch.long)) == []
    ((place, rows),) = group_tokens(torch.tensor([0, -1, 0]))
    assert place == 0 and isinstance(rows, Tensor) and rows.tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [[1, 1, 1], [0, 2, 0, 1, 1], [2], []])
def test_adapters_add_what_vllm_adds(places: list[int], dtype: torch.dtype) -> None:
    from vllm.lora.ops.torch_ops import bgmv_expand_slice, bgmv_shrink

    index, scale = torch.tensor(places, dtype=torch.long), 0.5
    shrinking, expanding = (tuple(each.to(dtype) for each in part) for part in make_adapters())
    x, y = torch.randn(len(places), IN, dtype=dtype), torch.randn(len(places), sum(WIDTHS), dtype=dtype)
    expected, start = y.clone(), 0
    for a, b, width in zip(shrinking, expanding, WIDTHS, strict=True):
        low = torch.zeros(len(places), RANK)
        bgmv_shrink(x, a, low, index, scale)
        bgmv_expand_slice(low, b, expected, index, start, width)
        start += width
    add_adapters(y, x, shrinking, expanding, scale, WIDTHS, group_tokens(index))
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=tolerance)


def test_tokens_without_an_adapter_are_left_alone() -> None:
    shrinking, expanding = make_adapters()
    x, y = torch.randn(3, IN), torch.randn(3, sum(WIDTHS))
    before = y.clone()
    add_adapters(y, x, shrinking, expanding, 1.0, WIDTHS, group_tokens(torch.tensor([-1, 2, -1])))
    assert torch.equal(y[[0, 2]], before[[0, 2]])
    assert not torch.equal(y[1], before[1])


def run_vllm(code: str) -> list[str]:
    """What a fresh interpreter prints last, after vLLM has loaded its plugins."""
    code = f"from vllm.plugins import load_general_plugins; load_general_plugins(); {code}"
    run: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return str(run.stdout).splitlines()[-1].split()


def test_vllm_finds_the_plugin_and_takes_its_class_for_a_batch() -> None:
    code = """
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper import get_punica_wrapper
wrapper = get_punica_wrapper(16, max_batches=4, device="cpu")
y, x = torch.zeros(3, 2), torch.ones(3, 2)
a, b = torch.ones(2, 1, 1, 2), torch.ones(2, 1, 2, 1)
b[1] = 10
for is_prefill in (True, False):
    mapping = LoRAMapping(index_mapping=(7, 0, 9), prompt_mapping=(7, 0, 9), is_prefill=is_prefill)
    wrapper.update_metadata(mapping, [7, 9], 2, 100)
    wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (2,))
print(type(wrapper).__name__, *y[:, 0].tolist())
"""
    assert run_vllm(f"exec({code!r})") == ["GroupedLora", "4.0", "0.0", "40.0"]
