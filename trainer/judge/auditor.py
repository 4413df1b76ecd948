"""The auditor: a second reward model that no policy is ever trained or selected by, so that it can tell when the first is fooled.

It has an adapter, heads, a seed and choices of its own: rows of the split `auditor`, which no other part learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.learn.reward.model import RewardModel
from trainer.math.intervals import log_evidence
from trainer.text.rejected import Reject, log_rejected

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone
    from trainer.sections.reward import RewardSection
    from trainer.text.pairs import Pair, Rated

ADAPTER = SPLIT = "auditor"
SEED_SHIFT = 1_000_003
EVIDENCE = 3.0  # log e-value of its record at which it may judge: 20 to 1 that it foresees better than a coin


class Auditor(RewardModel):
    """Learns from choices of its own split and scores answers. half_life_s: as of a reward model."""

    def __init__(
        self,
        backbone: Backbone,
        settings: RewardSection | None = None,
        *,
        reject: Reject = log_rejected,
        seed: int = 0,
        half_life_s: float | None = None,
    ) -> None:
        super().__init__(
            backbone, settings, adapter=ADAPTER, reject=reject, seed=seed + SEED_SHIFT, half_life_s=half_life_s
        )

    @property
    def may_judge(self) -> bool:
        """Whether it has shown that it foresees choices."""
        right, total = self.record.count
        return 2 * right > total and log_evidence(right, total) >= EVIDENCE

    def update(
        self,
        new: Sequence[Pair],
        replay: Sequence[Pair],
        rated: Sequence[Rated] = (),
    ) -> dict[str, float]:
        """As RewardModel.update. Raises ValueError for a row of another split: it would no longer be independent."""
        splits = {row.split for row in (*new, *replay)} | {row.split for row in rated}
        if splits - {SPLIT}:
            raise ValueError(
                f"rows of the split {', '.join(sorted(splits - {SPLIT}))}: the auditor learns from its own alone"
            )
        return super().update(new, replay, rated)
