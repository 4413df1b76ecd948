"""What `prefloop up` must know of the trainer's settings to start an engine that fits: from the same file and variables."""

from __future__ import annotations

from pydantic import BaseModel, Field

from feedback.settings import SharedSettings
from prefloop.services import DEFAULT_RANK


class _Model(BaseModel):
    lora_rank: int | None = None


class _Scorer(BaseModel):
    enabled: bool = False


class _Trainer(BaseModel):
    model: _Model = Field(default_factory=_Model)
    scorer: _Scorer = Field(default_factory=_Scorer)


class MachineSettings(SharedSettings):
    """Settings that all processes share, the rank of the trainer's adapters, and whether there is a scorer."""

    trainer: _Trainer = Field(default_factory=_Trainer)

    @property
    def lora_rank(self) -> int:
        """Rank of the trainer's adapters, as set or by default."""
        return self.trainer.model.lora_rank or DEFAULT_RANK

    @property
    def has_scorer(self) -> bool:
        """Whether a scorer runs beside the trainer."""
        return self.trainer.scorer.enabled
