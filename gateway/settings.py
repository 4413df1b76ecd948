"""The gateway's settings: how it listens, when it asks, and how a rollout is judged.

`preset = "demo"` replaces defaults by those for short worlds, `personal` by those for one person; values that were
given explicitly still win. Run as a program it only says whether the settings can be used.
"""

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, IPvAnyNetwork, field_validator, model_validator

from feedback.database import locate_store
from feedback.events import Share
from feedback.scoring import MAX_CANDIDATES
from feedback.settings import DatabaseUrl, HttpUrl, SharedSettings, load_settings

LogFormat = Literal["text", "json"]
EvidenceUnit = Literal["user", "comparison"]
Action = Literal["roll_back", "pause", "warn"]
GuardrailName = Literal["errors", "truncation", "refusals", "harm"]

_HOUR_S = 3600.0
_DAY_S = 86400.0
_ROUNDING = 1e-6


class AskingSection(BaseModel):
    """Which two answers are asked about where a scorer is at hand: shares of the comparisons that are no duels."""

    random: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Share whose two answers are picked at random: it alone judges what is learnt.",
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


class GatewaySection(BaseModel):
    """How the gateway listens, reaches the engines and asks for choices."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; beyond loopback needs `secrets_configured`."
    )
    port: int = Field(default=8800, ge=0, le=65535, description="Port to listen on.")
    secrets_configured: bool = Field(
        default=False,
        description="Says that pepper, token key and admin key were set on purpose: allows a public address.",
    )
    engines: list[HttpUrl] = Field(
        default=["http://127.0.0.1:8801"],
        description="Base URLs of the vLLM engines that take adapters. Those of whole models are registered by whoever runs "
        "them; empty if there are no others.",
    )
    database_url: DatabaseUrl = Field(default="", description="SQLAlchemy URL; empty means `<state_dir>/gateway.db`.")
    database_wait_s: float = Field(
        default=60.0, ge=0, description="How long the start waits for a database that does not answer, before it fails."
    )
    ask_rate: float = Field(default=0.10, ge=0, le=1, description="Share of opted-in requests answered twice.")
    random_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of opted-in requests asked at random, whatever the asking policy says.",
    )
    asking: AskingSection = Field(
        default_factory=AskingSection, description="Which two answers are asked about, where a scorer is at hand."
    )
    scorer_url: HttpUrl = Field(
        default="",
        description="Base URL of the trainer's scorer, which picks the two. Empty: all comparisons are random.",
    )
    max_asks_per_user_day: int = Field(default=3, ge=0, description="Most comparisons shown to one user in 24 hours.")
    skip_cooldown_s: float = Field(
        default=4 * _HOUR_S, ge=0, description="A user who skips is not asked for this long."
    )
    comparison_ttl_s: float = Field(default=_HOUR_S, gt=0, description="How long a comparison may be answered.")
    comparison_commit_ms: float = Field(
        default=2000.0,
        gt=0,
        description="Longest a response waits for its comparison row; after it, nobody is asked and only index 0 counts.",
    )
    pair_token_ids: bool = Field(
        default=True,
        description="Ask engines for the token ids of both answers of a pair (`return_token_ids`), so that learning need not "
        "guess them. An engine that refuses the field is asked without it.",
    )
    max_event_bytes: int = Field(
        default=900_000, gt=0, description="A request whose event could pass this is never paired."
    )
    max_body_bytes: int = Field(default=8_000_000, gt=0, description="Largest request body taken.")
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="Longest wait for a whole request, from its first byte."
    )
    allow_remote_media: bool = Field(
        default=False, description="Let apps name remote images and files, which the engine then fetches."
    )
    refuse_prompt_logprobs: bool = Field(
        default=True,
        description="Refuse `prompt_logprobs` and `echo`, which kill a vLLM 0.32 that serves adapters on CPU. Turn it off for "
        "engines that survive them.",
    )
    record_completions: bool = Field(
        default=True, description="Keep single answers with their requests, so that signals can be told of them."
    )
    record_share: float = Field(default=1.0, ge=0, le=1, description="Share of single answers that is kept.")
    completions_buffer_rows: int = Field(
        default=50_000,
        gt=0,
        description="Most answers that wait in memory to be written; what comes on top is dropped.",
    )
    completions_buffer_mb: float = Field(
        default=64.0, gt=0, description="Most megabytes of answers and requests that wait in memory to be written."
    )
    completions_keep_hours: float = Field(default=72.0, gt=0, description="How long a recorded answer is kept.")
    completions_max_mb: float = Field(
        default=4096.0, gt=0, description="Size that recorded answers may take on disk; the oldest go first."
    )
    connect_wait_s: float = Field(
        default=180.0,
        ge=0,
        description="How long a request waits for an engine that is restarting, before its first byte.",
    )
    first_byte_timeout_s: float = Field(
        default=120.0, gt=0, description="Longest wait for the first byte of an answer."
    )
    answer_timeout_s: float = Field(default=600.0, gt=0, description="Longest wait for an answer that is not streamed.")
    idle_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Longest silence inside an answer that has begun; also how long a client may take nothing of one.",
    )
    max_upstream_connections: int = Field(default=1024, gt=0, description="Connections to one engine.")
    reconcile_s: float = Field(default=2.0, gt=0, description="Pause between looks at which adapters an engine holds.")
    hang_s: float = Field(
        default=30.0,
        gt=0,
        description="An engine with requests in flight that sends no byte and counts no token for this long hangs: it is "
        "out until it proves itself. Without vLLM's metrics, set it above the longest answer that is not streamed.",
    )
    breaker_failures: int = Field(
        default=5, ge=1, description="Failures in a row (no connection, 5xx, time-out) that take an engine out."
    )
    breaker_backoff_s: float = Field(
        default=1.0, gt=0, description="Pause before an engine that is out is tried; doubled by every failed trial."
    )
    breaker_max_backoff_s: float = Field(default=30.0, gt=0, description="Longest pause before such a trial.")
    engine_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="What the engines compute in; `prefloop up` says it of its own."
    )
    probe_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="Largest difference of a probe's log-probabilities, in nats; None: .001 by engine_dtype float32, else .2.",
    )
    price_per_million_prompt_tokens: float = Field(
        default=0.0, ge=0, description="What a million prompt tokens cost; keys' budgets are in the same currency."
    )
    price_per_million_completion_tokens: float = Field(
        default=0.0, ge=0, description="What a million completion tokens cost."
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, description="On SIGTERM, how long requests in flight may take to end."
    )
    log_format: LogFormat = Field(
        default="text", description="Log lines on stderr: `text`, or `json` for one object a line."
    )
    trusted_proxies: list[IPvAnyNetwork] = Field(
        default=[],
        description="Addresses or networks (CIDR) of reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are "
        "believed. Without them a request that was forwarded has no known address.",
    )
    playground: bool | None = Field(
        default=None,
        description="Serve the playground, which answers without a key: `true` to whoever reaches the gateway, `false` to "
        "nobody. Unset: to programs on this machine, while `host` is loopback.",
    )
    playground_requests_per_minute: int = Field(
        default=60,
        ge=0,
        description="Most questions that the playground answers in a minute, of all its users together.",
    )
    playground_trains: bool = Field(
        default=False, description="Let choices made in the playground reach the log, and so the trainer."
    )
    playground_user: str = Field(
        default="",
        description="Name of the one person who uses the playground: what they choose there is evidence of rollouts, as an"
        " app's user's choice is. Empty: nobody's, and no evidence.",
    )
    playground_operates: bool = Field(
        default=False,
        description="Let the playground show what was learnt, ask checkpoints by name, and approve or end a trial without a"
        " key: for programs on this machine only, whatever `playground` says.",
    )
    playground_temperature: float | None = Field(
        default=None, ge=0, le=2, description="Sampling temperature of the playground's answers; None: the engine's."
    )
    playground_max_tokens: int | None = Field(
        default=None, ge=1, description="Longest answer in the playground, in tokens; None: the engine's limit."
    )
    trainer_url: HttpUrl = Field(
        default="",
        description="Where the trainer says what it does, for the playground to show. Empty: it says nothing of learning.",
    )
    access_log: bool = Field(
        default=False,
        description="Log each finished request to an engine: who, how long, how it ended; never its text.",
    )
    otlp_endpoint: HttpUrl = Field(
        default="",
        description="Base URL of an OTLP/HTTP collector for traces (needs `prefloop[otel]`). Empty: no traces.",
    )

    @field_validator("engines")
    @classmethod
    def refuse_repeats(cls, engines: list[str]) -> list[str]:
        """Raises ValueError for an engine that is listed twice."""
        if len({url.rstrip("/") for url in engines}) < len(engines):
            raise ValueError("an engine is listed twice")
        return engines

    @property
    def max_probe_difference(self) -> float:
        """Nats by which a probe may be off: what was asked for, else what the engines' rounding explains."""
        return self.probe_tolerance or (1e-3 if self.engine_dtype == "float32" else 0.2)

    @model_validator(mode="after")
    def refuse_contradictions(self) -> Self:
        """Raises ValueError for values that cannot hold together."""
        if self.breaker_backoff_s > self.breaker_max_backoff_s:
            raise ValueError(
                f"breaker_backoff_s ({self.breaker_backoff_s:g}) is above breaker_max_backoff_s"
                f" ({self.breaker_max_backoff_s:g})"
            )
        return self

    @property
    def has_prices(self) -> bool:
        """Whether a budget of a key could ever be spent."""
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens)


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
    split: Action = Field(default="pause", description="Users, or places on the page, split otherwise than intended.")


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


_DEMO: dict[str, dict[str, Any]] = {
    "gateway": {"ask_rate": 1.0, "max_asks_per_user_day": 100_000, "skip_cooldown_s": 0.0, "random_share": 0.0},
    "rollout": {
        "cap": 3,
        "window_s": 30.0,
        "min_users": 40,
        "min_s": 0.0,
        "max_users": 200,
        "max_s": 180.0,
        "steps": [{"weight": 0.25, "hold_s": 10.0}, {"weight": 0.50}],
        "duel_share": 1.0,
        "ceilings": {"errors": 0.10, "truncation": 0.10, "refusals": 0.10, "harm": 0.10},
        "accept_blind": ["harm"],  # its people report nothing
        "baking_s": 20.0,
        "drain_timeout_s": 30.0,
    },
}
# A real model on two cores answers some 20 comparisons a minute, so that nobody has a second one within a window, and talks
# to the token limit now and then.
_DEMO_SMOLLM2: dict[str, dict[str, Any]] = {
    "gateway": _DEMO["gateway"],
    "rollout": {
        **_DEMO["rollout"],
        "cap": 1,
        "max_s": 1500.0,
        "ceilings": {"errors": 0.10, "truncation": 0.50, "refusals": 0.30, "harm": 0.10},
        "drain_timeout_s": 60.0,
    },
}
# One person who teaches a model alone: every answer is asked about, a trial takes a handful of comparisons, and that person
# decides. Comparisons are the units, so nothing here says what other people would prefer.
_PERSONAL: dict[str, dict[str, Any]] = {
    "gateway": {
        **_DEMO["gateway"],
        "playground_trains": True,
        "playground_user": "me",
        "playground_operates": True,
        "playground_temperature": 0.8,
        "playground_max_tokens": 200,
    },
    "rollout": {
        "evidence_unit": "comparison",
        "cap": 1,
        "window_s": 120.0,
        "alpha": 0.2,
        "min_users": 5,
        "min_s": 0.0,
        "max_users": 200,
        "steps": [{"weight": 0.05}],
        "duel_share": 1.0,
        "ceilings": {"errors": 0.30, "truncation": 0.60, "refusals": 0.50, "harm": 0.30},
        "rollback_threshold": 4.0,
        "accept_blind": ["harm"],  # one person may never report any
        "approve_early": True,
        "baking_s": 10.0,
        "baking_weight": 0.0,
        "drain_timeout_s": 60.0,
    },
}
_PRESETS = {"demo": _DEMO, "demo-smollm2": _DEMO_SMOLLM2, "personal": _PERSONAL}


class GatewaySettings(SharedSettings):
    """Everything the gateway reads, from prefloop.toml and PREFLOOP_ variables."""

    gateway: GatewaySection = Field(default_factory=GatewaySection, description="Listening, engines, asking.")
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="How a canary is judged.")

    @classmethod
    def preset_values(cls, preset: str) -> dict[str, Any]:
        """What `preset` puts in place of the defaults."""
        return _PRESETS.get(preset, {})

    @property
    def gateway_database(self) -> str:
        """The SQLAlchemy URL of the gateway's database."""
        return locate_store("gateway", self.state_dir, self.gateway.database_url)

    @property
    def completions_database(self) -> str:
        """The SQLAlchemy URL of the recorded answers: a file beside SQLite's gateway.db, else the same database."""
        return locate_store("completions", self.state_dir, self.gateway.database_url)


if __name__ == "__main__":
    load_settings(GatewaySettings)
