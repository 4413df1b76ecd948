"""Which rows make which optimizer step: decided by seed and row ids alone, so that a resumed run finds the same steps.

Pure. Rows of like length share a step, which saves padding; steps come in random order. Nothing is dropped: the rows of an
epoch are spread evenly, so that no last step is made of a row or two.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

WINDOW = 10  # steps among which rows are sorted by length: more saves padding, fewer mixes better


def count_steps(num_rows: int, batch_size: int) -> int:
    """Steps of one epoch."""
    return -(-num_rows // batch_size)


def plan_steps(
    ids: Sequence[str], lengths: Sequence[int], *, batch_size: int, epochs: int, seed: int, num_steps: int = 0
) -> list[list[int]]:
    """The rows (indices) of every step. With num_steps, so many, over as many epochs as that takes."""
    if not ids:
        return []
    per_epoch = count_steps(len(ids), batch_size)
    total = num_steps or epochs * per_epoch
    epochs = -(-total // per_epoch)
    steps = [step for epoch in range(epochs) for step in _plan_epoch(ids, lengths, per_epoch, f"{seed}:{epoch}")]
    return steps[:total]


def _plan_epoch(ids: Sequence[str], lengths: Sequence[int], num_steps: int, salt: str) -> list[list[int]]:
    drawn = sorted(range(len(ids)), key=lambda i: (_draw(f"{salt}:{ids[i]}"), i))
    steps = []
    for first in range(0, num_steps, WINDOW):
        last = min(first + WINDOW, num_steps)
        bounds = [len(ids) * step // num_steps for step in range(first, last + 1)]
        window = sorted(drawn[bounds[0] : bounds[-1]], key=lambda i: lengths[i])
        steps += [window[a - bounds[0] : b - bounds[0]] for a, b in pairwise(bounds)]
    order = sorted(range(num_steps), key=lambda step: _draw(f"{salt}:step {step}"))
    return [steps[step] for step in order]


def _draw(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
