"""Settings that every process shares: where state lies, the log, the policy's name.

One TOML file ($PREFLOOP_CONFIG, else ./prefloop.toml), overridden by PREFLOOP_… environment variables, overridden by
arguments. A preset replaces defaults only: whatever is written down anywhere wins over it. What cannot be used is
refused in one line, the same in every process: names that no process has, values, combinations that cannot be meant.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import pydantic_settings
from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from feedback.errors import SettingsError
from feedback.log import Log, LogOptions, open_log
from feedback.log.options import SaslMechanism, Security
from feedback.setting_names import PREFIX, find_unknown, find_unknown_variable, list_names, load_names, merge_names

if TYPE_CHECKING:
    from feedback.checkpoint_store import CheckpointStore

Preset = Literal["default", "demo", "demo-smollm2", "personal"]
Settings = TypeVar("Settings", bound="SharedSettings")


def _check_scheme(*schemes: str) -> AfterValidator:
    def check(url: str) -> str:
        if url and (url in schemes or not url.startswith(schemes)):  # not repeated: it may hold a password
            raise ValueError(f"the URL must begin with {' or '.join(schemes)}")
        return url

    return AfterValidator(check)


LogUrl = Annotated[str, _check_scheme("sqlite:", "kafka://")]
DatabaseUrl = Annotated[str, _check_scheme("sqlite:", "postgresql://", "postgresql+psycopg://")]


def _check_store(url: str) -> str:
    if url and not re.match(r"[a-z][a-z0-9]*://.", url):  # not repeated: it may hold a password
        raise ValueError(
            "the URL must be one of fsspec's, such as s3://bucket/prefix, gs://bucket or file:///directory"
        )
    if url.startswith("file://") and not url.startswith("file:///"):
        raise ValueError("a file URL has three slashes and an absolute path: file:///directory")
    return url


StoreUrl = Annotated[str, AfterValidator(_check_store)]
HttpUrl = Annotated[str, _check_scheme("http://", "https://")]


class KafkaSection(BaseModel):
    """How to reach the Kafka cluster of a `kafka://` log_url, and how its topics are made. Unused by the embedded log."""

    timeout_s: float = Field(
        default=30.0,
        ge=1,
        description="Longest wait for one answer of the cluster; after it the log counts as unavailable.",
    )
    security: Security = Field(default="plaintext", description="`plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`.")
    ca_file: str = Field(default="", description="PEM file of the authorities to trust. Empty: the system's.")
    cert_file: str = Field(default="", description="PEM file of the client's certificate. Empty: none.")
    key_file: str = Field(default="", description="PEM file of the client's private key.")
    sasl_mechanism: SaslMechanism = Field(
        default="SCRAM-SHA-512", description="`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`."
    )
    sasl_username: str = Field(default="", description="User for SASL.")
    sasl_password: SecretStr = Field(
        default=SecretStr(""), description="Password for SASL; better set by the environment."
    )
    session_timeout_s: float = Field(
        default=10.0,
        ge=6,
        description="After so long a silence the others of a consumer group take over a reader's partitions.",
    )
    partitions: int = Field(
        default=4, ge=1, description="Partitions of a topic that is made; more let more readers share it."
    )
    replication_factor: int = Field(
        default=-1, ge=-1, description="Copies of a topic that is made; -1: as the cluster says."
    )
    min_insync_replicas: int = Field(
        default=0,
        ge=0,
        description="Copies that must hold a record before it counts as written; 0: as the cluster says.",
    )
    retention_ms: int = Field(
        default=-1, ge=-1, description="How long a topic that is made keeps records; -1: for ever."
    )
    dead_letter_suffix: str = Field(
        default=".dead-letters",
        min_length=1,
        description="Added to a topic's name: the topic of the records nobody could read.",
    )

    @model_validator(mode="after")
    def refuse_contradictions(self) -> Self:
        """Raises ValueError for what would be silently unused or can never work."""
        has_tls, has_sasl = self.security.endswith("ssl"), self.security.startswith("sasl")
        unused = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) and not has_tls]
        unused += ["sasl_username"] if self.sasl_username and not has_sasl else []
        unused += ["sasl_password"] if self.sasl_password.get_secret_value() and not has_sasl else []
        if unused:
            raise ValueError(f"{unused[0]} is set, but security = {self.security!r} does not use it")
        if has_sasl and not self.sasl_username:
            raise ValueError(f"security = {self.security!r} needs sasl_username and sasl_password")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file is set without cert_file")
        if 0 < self.replication_factor < self.min_insync_replicas:
            raise ValueError(
                f"min_insync_replicas ({self.min_insync_replicas}) is above replication_factor"
                f" ({self.replication_factor}): no record could be written"
            )
        return self


class SharedSettings(BaseSettings):
    """What gateway, trainer and command line must agree on. Subclasses add their own sections."""

    model_config = SettingsConfigDict(
        env_prefix="PREFLOOP_", env_nested_delimiter="__", extra="ignore", frozen=True, validate_default=True
    )

    def __init__(self, **given: Any) -> None:
        """Raises SettingsError."""
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise SettingsError(_describe_errors(error)) from None
        except pydantic_settings.SettingsError as error:  # a variable whose JSON cannot be read
            raise SettingsError(f"the environment: {error}: {error.__cause__}".replace("\n", " ")) from None

    state_dir: Path = Field(
        default=Path("state"),
        description="Directory of all that must survive a restart: databases, secrets, checkpoints.",
    )
    log_url: LogUrl = Field(default="", description="The log of feedback. Empty: sqlite:<state_dir>/log.db.")
    checkpoints_url: StoreUrl = Field(
        default="",
        description="Where checkpoints are kept: an fsspec URL (`s3://bucket/prefix`, `gs://bucket`, `file:///directory`), with"
        " credentials and endpoint from the SDK's own environment. Empty: <state_dir>/checkpoints, which engines must see.",
    )
    signing_key_file: str = Field(
        default="",
        description="PEM file of the Ed25519 private key that the trainer signs checkpoints with"
        " (`prefloop checkpoints sign-key`). Empty: they are not signed.",
    )
    trusted_keys_file: str = Field(
        default="",
        description="PEM file of the Ed25519 public keys, one or several, that gateway and `prefloop sync` trust: what none of"
        " them signed is refused. Empty: nothing need be signed.",
    )
    policy: str = Field(default="default", description="The name under which apps ask for the policy, as `model`.")
    base_model: str = Field(
        default="", description="Directory or hub id of the base weights. Empty: the seed policy in <state_dir>/seed."
    )
    topic: str = Field(default="prefloop.feedback", description="The log's topic for what people said.")
    kafka: KafkaSection = Field(default_factory=KafkaSection, description="The Kafka cluster behind log_url.")
    preset: Preset = Field(
        default="default",
        description="Set of defaults: `default` for real traffic; for short worlds `demo`, or `demo-smollm2` where the"
        " model is a real one; `personal` for one person who teaches a model alone.",
    )

    engine_gpu_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Share of the GPU's memory that the engine of `prefloop up` takes, where the trainer computes on it too;"
        " the trainer plans with the rest. 0: each has a GPU of its own.",
    )

    @property
    def log(self) -> str:
        """The log's URL, with the default filled in."""
        return self.log_url or f"sqlite:{self.state_dir / 'log.db'}"

    @property
    def dead_letter_topic(self) -> str:
        """The topic of the records that nobody could read."""
        return self.topic + self.kafka.dead_letter_suffix

    @property
    def log_options(self) -> LogOptions:
        """The section `kafka` as the log reads it."""
        values = self.kafka.model_dump(exclude={"sasl_password", "dead_letter_suffix"})
        return LogOptions(**values, sasl_password=self.kafka.sasl_password.get_secret_value())

    def open_log(self) -> Log:
        """Open the log. Every process opens it by this, so that none differs."""
        return open_log(self.log, self.log_options)

    def open_store(self) -> CheckpointStore | None:
        """Open the checkpoint store; None where checkpoints lie in a directory. Raises StoreUnavailable."""
        if not self.checkpoints_url:
            return None
        from feedback.checkpoint_store import open_store  # not every command needs it

        return open_store(self.checkpoints_url)

    @property
    def base(self) -> str:
        """The base weights, with the default filled in."""
        return self.base_model or str(self.state_dir / "seed")

    @classmethod
    def preset_values(cls, preset: str) -> dict[str, Any]:
        """Nested values that `preset` puts in place of the defaults. Subclasses override this."""
        return {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, environment, file, preset, default. Raises SettingsError."""
        assert isinstance(init_settings, InitSettingsSource)
        known, written = merge_names(load_names(), list_names(settings_cls)), read_file()
        for where, problem in (
            (f"{find_file()}: ", find_unknown(written, known)),
            ("", find_unknown_variable(os.environ, known)),
            ("", find_unknown(init_settings.init_kwargs, known)),
        ):
            if problem:
                raise SettingsError(where + problem)
        return init_settings, env_settings, InitSettingsSource(settings_cls, written), PresetSource(settings_cls)


def load_settings(kind: type[Settings]) -> Settings:
    """The settings of a process that starts; ends it with one line on stderr if they cannot be used."""
    try:
        return kind()
    except SettingsError as error:
        sys.exit(str(error))


def find_file() -> Path:
    """The file that holds the settings; one that nobody named may be missing."""
    return Path(os.environ.get("PREFLOOP_CONFIG") or "prefloop.toml")


def read_file() -> dict[str, Any]:
    """What the file says, {} without one. Raises SettingsError with the file's name."""
    path = find_file()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not os.environ.get("PREFLOOP_CONFIG"):
            return {}
        raise SettingsError(f"PREFLOOP_CONFIG names no file: {path}") from None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # no TOML, no UTF-8
        raise SettingsError(f"{path}: {error}".replace("\n", " ")) from None


def _describe_errors(error: ValidationError) -> str:
    """One line for all that is wrong, each with its place."""
    described = []
    for row in error.errors(include_url=False, include_input=False):
        name = ".".join(map(str, row["loc"]))
        message = row["msg"].removeprefix("Value error, ")
        described.append(": ".join([*_find_places(row["loc"]), *([name] if name else []), message]))
    return "; ".join(described)


def _find_places(path: tuple[int | str, ...]) -> list[str]:
    """The variables, else the file, that say something of this setting or section; none of what was passed."""
    variable = PREFIX + "__".join(part for part in path if isinstance(part, str)).upper()
    found = sorted(name for name in os.environ if (name.upper() + "__").startswith(variable + "__"))
    written: Any = read_file()
    for part in path:
        written = written.get(part) if isinstance(written, Mapping) else None if isinstance(part, str) else written
    if written is not None and path:
        found.insert(0, str(find_file()))
    return [" and ".join(found)] if found else []


class PresetSource(PydanticBaseSettingsSource):
    """The weakest source: values of the preset that the stronger sources chose."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # presets are nested, so they are given whole by __call__

    def __call__(self) -> dict[str, Any]:
        assert issubclass(self.settings_cls, SharedSettings)
        return self.settings_cls.preset_values(str(self.current_state.get("preset", "default")))
