"""What a reward is made of and how the reward model learns, as settings."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator


class RewardSection(BaseModel):
    """How the reward model keeps up with choices."""

    update_every_preferences: int = Field(default=64, ge=2, description="New preferences that make one update.")
    replay_share: float = Field(
        default=0.5, ge=0, lt=1, description="Share of an update's pairs that are replayed from earlier ones."
    )
    max_replays: int = Field(default=3, ge=0, description="How often a pair may be replayed.")
    window: int = Field(
        default=400,
        ge=20,
        description="Newest choices by which the model is judged, each foreseen before it is learnt from.",
    )
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5, description="Chance that a choice was a slip.")
    margin: float = Field(
        default=0.5, ge=0, description="Lead that the preferred answer needs where the choice's strength is 1."
    )
    centre_weight: float = Field(default=0.01, ge=0, description="Pull of the sum of a pair's scores towards 0.")
    rated_weight: float = Field(
        default=0.5, ge=0, description="What a thumb, rating or outcome counts beside a choice."
    )
    style_prior: float = Field(
        default=0.6,
        gt=0,
        description="How large the weights of style are expected to be (length's three times as much); choices decide in time.",
    )
    num_draws: int = Field(
        default=10, ge=2, le=64, description="Draws of the score whose spread says how unsure it is."
    )
    pessimism: float = Field(
        default=1.0, ge=0, description="Spreads that are taken off a score where policies are trained or judged by it."
    )
    head_width: int = Field(default=16, ge=1, description="Hidden units of each network on frozen hidden states.")
    head_lr: float = Field(default=3e-3, gt=0, description="Learning rate of the heads.")
    head_steps: int = Field(default=40, ge=0, description="Steps of the heads in one update.")
    head_batch_size: int = Field(default=128, ge=2, description="Choices in one step of the heads.")
    hidden_features: int = Field(
        default=512, ge=1, description="Columns that hidden states are projected to where they have more."
    )
    adapter_lr: float | None = Field(
        default=None,
        gt=0,
        description="Learning rate of the adapter; None: the preset's (tiny 1e-3, small 2e-4, else 5e-5).",
    )
    adapter_pairs: int | None = Field(
        default=None,
        ge=0,
        description="Most pairs of an update that train the adapter. None: all; none by the preset small on a CPU.",
    )
    adapter_batch_size: int = Field(default=16, ge=1, description="Pairs in one step of the adapter.")
    capacity: int = Field(default=65_536, ge=64, description="Choices whose style is kept to be fitted anew.")
    hidden_capacity: int = Field(default=4096, ge=64, description="Choices whose frozen hidden states are kept.")
    bulk_adapter_pairs: int = Field(
        default=2048, ge=0, description="Most pairs of a bulk pass that train the adapter, where it is trained at all."
    )


class CheckerSection(BaseModel):
    """A check that a program makes of answers, and what it counts in a round's reward."""

    name: str = Field(min_length=1, description="The part of the reward, and what frozen tasks call it by.")
    kind: Literal["json", "sql", "regex", "python"] = Field(description="What is checked.")
    weight: float = Field(default=1.0, description="What a passed check adds to the reward.")
    tags: dict[str, str] = Field(
        default_factory=dict, description="Only prompts with these tags are checked; empty: all."
    )
    required: list[str] = Field(default_factory=list, description="json: keys that the object must have.")
    sql_schema: str = Field(default="", description="sql: statements that make the tables which a query may read.")
    pattern: str = Field(default="", description="regex: what must be found in the answer, in Python's syntax.")
    function: str = Field(
        default="",
        description="python: `package.module:function` of (messages, answer) that gives 0 to 1. It runs in the trainer.",
    )
    timeout_s: float = Field(default=1.0, gt=0, description="Longest time that a query or a search may take.")

    @model_validator(mode="after")
    def refuse_what_is_missing(self) -> Self:
        """Raises ValueError if the kind lacks what it checks by."""
        needed = {"regex": "pattern", "python": "function"}.get(self.kind)
        if needed and not getattr(self, needed):
            raise ValueError(f"a checker of kind {self.kind} needs {needed}")
        return self


class RewardsSection(BaseModel):
    """The reward of a round: a sum of named parts with their weights."""

    preference_weight: float = Field(default=1.0, description="Weight of what people prefer, as the reward model says.")
    length_weight: float = Field(
        default=0.0, ge=0, description="Weight of the words beyond max_words: their ratio's logarithm is taken off."
    )
    max_words: int = Field(default=400, ge=1, description="Words that cost nothing.")
    harm_weight: float = Field(
        default=2.0, ge=0, description="What an answer loses that the harm screen finds harmful."
    )
    outcome_weight: float = Field(
        default=0.5, description="Weight of how likely an answer's style makes success, by reported outcomes."
    )
    min_outcomes: int = Field(default=50, ge=1, description="Outcomes without which they have no part in the sum.")
    checkers: list[CheckerSection] = Field(default_factory=list, description="Checks, each under a name of its own.")

    @model_validator(mode="after")
    def refuse_one_name_twice(self) -> Self:
        """Raises ValueError if two checkers have one name."""
        names = [checker.name for checker in self.checkers]
        if len(set(names)) < len(names):
            raise ValueError(f"checkers of one name: {', '.join(sorted(names))}")
        return self
