"""Which two answers are asked about, where a scorer is at hand."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from feedback.events import Share
from feedback.scoring import MAX_CANDIDATES

_ROUNDING = 1e-6


class AskingSection(BaseModel):
    """Which two answers are asked about where a scorer is at hand: shares of the comparisons that are no duels."""

    random: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Share whose two answers are picked at random: it alone judges checkpoints and reward models.",
    )
    informative: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share that shows the two of several candidates that the reward model is least sure about; unset: half of"
        " what `random` leaves, or what both others leave.",
    )
    telling: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share that shows the best against the worst candidate by one posterior draw of the reward model; unset:"
        " as for `informative`.",
    )
    candidates: int = Field(
        default=4, ge=3, le=MAX_CANDIDATES, description="Answers that are made for a comparison of these two shares."
    )
    budget_ms: float = Field(
        default=1000.0,
        gt=0,
        description="How long asking may hold an answer beyond its first two candidates: for the others and for the scorer.",
    )
    hold_streams: bool = Field(
        default=False,
        description="Ask in these two shares about streamed answers too: nothing is sent before all candidates are complete"
        " and two are picked. Else streamed comparisons are random.",
    )

    @property
    def shares(self) -> dict[Share, float]:
        """The three shares, whose sum is 1."""
        left = 1 - self.random
        if self.informative is None and self.telling is None:
            return {"random": self.random, "informative": left / 2, "telling": left / 2}
        informative = left - (self.telling or 0.0) if self.informative is None else self.informative
        return {"random": self.random, "informative": informative, "telling": left - informative}

    @model_validator(mode="after")
    def refuse_other_sums(self) -> Self:
        """Raises ValueError if the shares are more or less than all."""
        given = [each for each in (self.informative, self.telling) if each is not None]
        total = self.random + sum(given)
        if total > 1 + _ROUNDING or (len(given) == 2 and total < 1 - _ROUNDING):
            raise ValueError(f"the shares random, informative and telling add up to {total:g}, not to 1")
        return self
