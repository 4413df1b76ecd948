"""How a canary is exposed and judged."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

EvidenceUnit = Literal["user", "comparison"]
Action = Literal["roll_back", "pause", "warn"]
GuardrailName = Literal["errors", "truncation", "refusals", "harm", "kl"]
TripwireName = Literal["length", "flattery", "refusals", "questions", "reward"]

_HOUR_S = 3600.0
_DAY_S = 86400.0


class RolloutStep(BaseModel):
    """One step of the canary's ramp."""

    weight: float = Field(gt=0, lt=1, description="Share of users served by the canary.")
    hold_s: float | None = Field(default=None, ge=0, description="How long the step lasts; none means until a verdict.")


class Ceilings(BaseModel):
    """Rates of bad events that the canary must stay below to be promoted."""

    errors: float = Field(default=0.10, gt=0, lt=1, description="Failed requests.")
    truncation: float = Field(default=0.10, gt=0, lt=1, description="Answers cut by the token limit.")
    refusals: float = Field(default=0.05, gt=0, lt=1, description="Answers that refuse.")
    harm: float = Field(default=0.01, gt=0, lt=1, description="Answers reported as harmful.")


def _default_steps() -> list[RolloutStep]:
    return [
        RolloutStep(weight=0.01, hold_s=0.5 * _HOUR_S),
        RolloutStep(weight=0.05, hold_s=4 * _HOUR_S),
        RolloutStep(weight=0.25, hold_s=4 * _HOUR_S),
        RolloutStep(weight=0.50),
    ]


class Actions(BaseModel):
    """What a guardrail's alarm does, by guardrail. A warning is shown, and moves nothing."""

    harm: Action = Field(default="roll_back", description="Answers reported as harmful.")
    errors: Action = Field(default="roll_back", description="Engine errors, broken streams and time-outs.")
    latency: Action = Field(default="roll_back", description="Time to the first token.")
    token_latency: Action = Field(default="warn", description="Time from one token to the next.")
    refusals: Action = Field(default="pause", description="Refused answers.")
    truncation: Action = Field(default="warn", description="Answers cut off at the app's own limit.")
    length: Action = Field(default="warn", description="Answers longer or shorter by a tenth of the limit and more.")
    kl: Action = Field(default="pause", description="Answers further from stable than `rollout.kl.margin`.")
    split: Action = Field(default="pause", description="Users, or places on the page, split otherwise than intended.")


class Tripwires(BaseModel):
    """What the canary may have more of than stable, before a preference for it no longer promotes: mean differences in duels."""

    length: float = Field(
        default=0.25, ge=0, lt=1, description="Characters of an answer, as a share of the longer one."
    )
    flattery: float = Field(default=0.10, ge=0, lt=1, description="Share of answers that begin with praise.")
    refusals: float = Field(default=0.10, ge=0, lt=1, description="Share of answers that refuse.")
    questions: float = Field(default=0.15, ge=0, lt=1, description="Share of answers that end by asking back.")


class Shadow(BaseModel):
    """Before the canary serves anybody, it may be asked what stable was asked; its answers are looked at and thrown away."""

    share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of requests that stable answers alone, which the canary is asked too; 0: off.",
    )
    min_answers: int = Field(
        default=200,
        ge=1,
        description="Fewest users (else conversations) of whom both answers were seen, before it serves anybody.",
    )
    min_s: float = Field(default=600.0, ge=0, description="Shortest shadowing.")
    max_in_flight: int = Field(
        default=4, ge=1, description="Shadow requests of one gateway at once; what is more is left out."
    )


class Kl(BaseModel):
    """How far the canary may be from stable: its answers in duels are measured in the background, at both arms."""

    share: float = Field(
        default=0.25, ge=0, le=1, description="Share of users whose first answer in a duel is measured; 0: none is."
    )
    margin: float = Field(
        default=0.5,
        gt=0,
        description="Nats a token that the mean divergence must be below; an answer counts as eight times this at most.",
    )
    places: int = Field(
        default=8,
        ge=1,
        description="Places of an answer, drawn at random, at which both arms are asked for one token.",
    )
    whole: bool = Field(
        default=False,
        description="Ask for `prompt_logprobs` of the whole answer instead. Not with adapters on CPU, where that kills vLLM 0.32.",
    )
    max_per_s: float = Field(
        default=1.0, gt=0, description="Answers that one gateway measures in a second; others are left out."
    )
    priority: int = Field(
        default=100, ge=0, description="Priority of these requests; people's have 0, higher is later."
    )
    timeout_s: float = Field(default=30.0, gt=0, description="Longest wait for an engine's answer.")


class RolloutSection(BaseModel):
    """How a canary is exposed and judged."""

    alpha: float = Field(
        default=0.05, gt=0, lt=1, description="Chance of promoting a canary that is no better, per rollout."
    )
    delta: float = Field(default=0.0, ge=0, lt=0.667, description="Net win rate that the canary must beat.")
    evidence_unit: EvidenceUnit = Field(
        default="user",
        description="What counts once: a `user`, or each `comparison`, where one person is all there is. Evidence by"
        " comparisons says what that person prefers, and nothing of others. It needs cap = 1.",
    )
    cap: int = Field(default=5, ge=1, description="Duels of one user that count.")
    window_s: float = Field(default=_DAY_S, gt=0, description="A user's duels count within this time of the first.")
    min_users: int = Field(default=100, ge=1, description="Fewest entered users before a promotion.")
    min_s: float = Field(default=_DAY_S, ge=0, description="Shortest rollout that may be promoted.")
    max_users: int = Field(
        default=2000, ge=1, description="Entered users after which the rollout ends as inconclusive."
    )
    max_s: float = Field(default=14 * _DAY_S, gt=0, description="Time after which the rollout ends as inconclusive.")
    steps: list[RolloutStep] = Field(default_factory=_default_steps, min_length=1, description="The canary's ramp.")
    duel_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of users who may duel, whatever the step's weight."
    )
    ceilings: Ceilings = Field(default_factory=Ceilings, description="Rates the canary must stay below.")
    actions: Actions = Field(default_factory=Actions, description="What a guardrail's alarm does.")
    accept_blind: list[GuardrailName] = Field(
        default=[],
        description="Guardrails that may promote though what they look with has never seen anything: nobody has ever reported"
        " harm, for instance, because no app has a button for it. They are judged as if it had.",
    )
    max_ratio: float = Field(default=1.5, gt=1, description="A guardrail's rate may not be this many times stable's.")
    rollback_threshold: float = Field(default=8.0, gt=1, description="Weighted evidence of harm at which to roll back.")
    sample_ratio_threshold: float = Field(
        default=1000.0, gt=1, description="Evidence of a skewed split at which `actions.split` is due."
    )
    slice_threshold: float = Field(
        default=20.0,
        gt=1,
        description="Evidence that the users of a slice prefer stable, at which the canary is not promoted.",
    )
    max_slices: int = Field(
        default=20,
        ge=0,
        description="Slices (domain, language, task) that are judged: those with the most users. 0 judges none.",
    )
    accept_slices: list[Annotated[str, Field(pattern=r"^[^=]+=.+$", max_length=200)]] = Field(
        default=[],
        description="Slices whose users may prefer stable, as `language=de`: such a loss is shown, and forbids no promotion.",
    )
    tripwires: Tripwires = Field(
        default_factory=Tripwires, description="Margins above which a preference alone does not promote."
    )
    accept_tripwires: list[TripwireName] = Field(
        default=[], description="Tripwires that may trip: a canary that is to answer at greater length, for instance."
    )
    harm_screen: str = Field(
        default="",
        pattern=r"^$|^[\w.]+:\w+$",
        description="A function that says whether an answer is harmful, as `module:function`, taking the request's messages and the"
        " answer's text. It looks at the answers of duels, in a thread of the gateway; what it calls harmful counts as reported.",
    )
    kl: Kl = Field(default_factory=Kl, description="The divergence from stable.")
    shadow: Shadow = Field(default_factory=Shadow, description="The stage before the canary serves anybody.")
    baking_s: float = Field(
        default=_DAY_S, ge=0, description="How long the old checkpoint keeps a share after a promotion."
    )
    baking_weight: float = Field(
        default=0.05, ge=0, lt=1, description="Share of users the old checkpoint keeps meanwhile."
    )
    drain_timeout_s: float = Field(default=60.0, ge=0, description="Longest wait for a checkpoint's last requests.")
    engine_start_s: float = Field(
        default=1800.0,
        gt=0,
        description="Longest wait for an engine that is started for a whole model, before its rollout is given up.",
    )
    approve_early: bool = Field(
        default=False,
        description="Ask the operator once min_users have entered and min_s have passed, however little evidence there is;"
        " it is said how little. Not with auto_approve.",
    )
    auto_approve: bool = Field(default=False, description="Promote without an operator once every gate passes.")
    approve_countdown_s: float = Field(default=0.0, ge=0, description="Visible countdown before an automatic approval.")
    tick_s: float = Field(default=0.5, gt=0, description="Pause between looks of the rollout controller.")
    report_s: float = Field(
        default=0.5,
        gt=0,
        description="Pause between a gateway's reports of what it serves, by which its lease runs on.",
    )
    lease_s: float = Field(
        default=5.0, gt=0, description="Of several gateways, another one leads when the leader is silent this long."
    )
    silent_s: float = Field(
        default=60.0,
        gt=0,
        description="A gateway silent this long is gone; one that cannot read the tables this long serves stable alone.",
    )
    keep_checkpoints: int = Field(
        default=10,
        ge=0,
        description="Newest checkpoints whose files are kept, beside stable and its parent; 0 keeps all.",
    )

    @model_validator(mode="after")
    def refuse_contradictions(self) -> Self:
        """Raises ValueError for a trial that could never pass, or gateways that would always think each other gone."""
        for low, high in (
            ("min_users", "max_users"), ("min_s", "max_s"), ("report_s", "lease_s"), ("report_s", "silent_s"),
            ("lease_s", "silent_s"),
        ):  # fmt: skip
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low):g}) is above {high} ({getattr(self, high):g})")
        if self.evidence_unit == "comparison" and self.cap != 1:
            raise ValueError(f"evidence_unit comparison needs cap 1, not {self.cap}")
        if self.approve_early and self.auto_approve:
            raise ValueError("approve_early asks a person, so it cannot go with auto_approve")
        for number, (step, following) in enumerate(pairwise(self.steps), 1):
            if following.weight < step.weight:
                raise ValueError(
                    f"steps: the weight falls from {step.weight:g} to {following.weight:g} at step {number + 1}"
                )
            if step.hold_s is None:
                raise ValueError(f"steps: step {number} has no hold_s, so step {number + 1} would never come")
        return self
