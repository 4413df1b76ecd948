"""How the gateway listens, reaches its engines, asks and records."""

import ipaddress
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, IPvAnyNetwork, field_validator, model_validator

from feedback.settings import DatabaseUrl, HttpUrl
from gateway.sections.asking import AskingSection
from gateway.sections.notices import NoticesSection

LogFormat = Literal["text", "json"]
DNS_SCHEME = "dns+http://"


def check_engine_url(url: str) -> str:
    """The URL of an engine, or of a name all of whose addresses are engines. Raises ValueError."""
    if not url.startswith(("http://", "https://", DNS_SCHEME)):
        raise ValueError(f"the URL must begin with http://, https:// or {DNS_SCHEME}")
    if url.startswith(DNS_SCHEME):
        parts = urlsplit(url)
        if not parts.hostname or parts.port is None or parts.username or parts.path.strip("/") or parts.query:
            raise ValueError(f"the URL must be {DNS_SCHEME}name:port")
        if parts.hostname == "localhost" or is_address(parts.hostname):
            raise ValueError(f"{parts.hostname} is not looked up in DNS: use http://")
    return url


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


EngineUrl = Annotated[str, AfterValidator(check_engine_url)]


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
    engines: list[EngineUrl] = Field(
        default=["http://127.0.0.1:8801"],
        description="Base URLs of the vLLM engines that take adapters; `dns+http://name:port`: every A and AAAA address of the "
        "name is one (a headless Service), taken in and let go as the answer changes. Those of whole models are registered by "
        "whoever runs them; empty if there are no others.",
    )
    resolve_s: float = Field(default=2.0, gt=0, description="Pause between two lookups of a name in `engines`.")
    dns_server: str = Field(
        default="",
        description="`address:port` of the DNS server that is asked for such names. Empty: as /etc/resolv.conf says.",
    )
    engine_checkpoints_dir: str = Field(
        default="",
        description="The directory, in the engines' file system, where `prefloop sync` keeps fetched checkpoints, a folder per"
        " id: engines are told to load <directory>/<id>. Empty: the path that was registered. Needed with checkpoints_url.",
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
    skip_cooldown_s: float = Field(default=4 * 3600.0, ge=0, description="A user who skips is not asked for this long.")
    comparison_ttl_s: float = Field(default=3600.0, gt=0, description="How long a comparison may be answered.")
    comparisons_keep_days: float | None = Field(
        default=None,
        ge=1,
        description="How long after its end a comparison keeps its prompt and answers here; who chose what stays. None: for ever."
        " The log and the trainer have copies of what was chosen.",
    )
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
    notices: NoticesSection = Field(
        default_factory=NoticesSection, description="Who is told of a rollout's transitions."
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

    @field_validator("dns_server")
    @classmethod
    def check_dns_server(cls, server: str) -> str:
        """Raises ValueError unless it is empty, or an address and a port."""
        if server:
            parts = urlsplit(f"//{server}")
            if not parts.hostname or not is_address(parts.hostname) or parts.port is None:
                raise ValueError("the DNS server must be address:port, as 127.0.0.1:53 or [::1]:53")
        return server

    @property
    def fixed_engines(self) -> list[str]:
        """The engines that are listed by their own URLs."""
        return [url for url in self.engines if not url.startswith(DNS_SCHEME)]

    @property
    def engine_names(self) -> list[str]:
        """The URLs whose names are looked up for engines."""
        return [url.rstrip("/") for url in self.engines if url.startswith(DNS_SCHEME)]

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
