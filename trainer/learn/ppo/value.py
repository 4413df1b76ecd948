"""What reward an answer is still to get, read token by token: adapter "value" with a head, which starts from the reward model.

Both read one hidden state, so what the reward model knows of whole answers is a first guess about their beginnings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.reward.adapter import AdapterPart
from trainer.model.heads import ValueHead, predicting_states
from trainer.text.batches import Batch

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

ADAPTER = "value"


def start_value(
    backbone: Backbone, reward: AdapterPart | None = None, *, share: float = 1.0, seed: int = 0
) -> ValueHead:
    """A head, with adapter "value" beside it: as the reward's adapter and head, times share, or 0 where those have not learnt.

    share: what the adapter's part counts in a reward.
    """
    head = ValueHead(backbone.hidden_size).to(backbone.device)
    if reward is not None and reward.has_learnt:
        backbone.adapters.reset(ADAPTER, like=reward.adapter)
        head.take_over(reward.head, reward.standardiser, share)
        return head
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # what is drawn anew is drawn alike after a kill
        torch.manual_seed(seed)
        backbone.adapters.reset(ADAPTER)
    return head


def token_values(backbone: Backbone, head: ValueHead, batch: Batch) -> Tensor:
    """V of the state that each answer token is chosen in, (tokens,) float32, answer by answer, under the adapter that is active."""
    values: Tensor = head(predicting_states(backbone.hidden(batch), batch))
    return values
