"""Settings that every process shares: where state lies, the log, the policy's name.

One TOML file ($PREFLOOP_CONFIG, else ./prefloop.toml), overridden by PREFLOOP_… environment variables, overridden by
arguments. A preset replaces defaults only: whatever is written down anywhere wins over it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from feedback.log import Log, LogOptions, open_log
from feedback.log.options import SaslMechanism, Security

Preset = Literal["default", "demo"]


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


class SharedSettings(BaseSettings):
    """What gateway, trainer and command line must agree on. Subclasses add their own sections."""

    model_config = SettingsConfigDict(
        env_prefix="PREFLOOP_", env_nested_delimiter="__", extra="ignore", frozen=True, validate_default=True
    )

    state_dir: Path = Field(
        default=Path("state"),
        description="Directory of all that must survive a restart: databases, secrets, checkpoints.",
    )
    log_url: str = Field(default="", description="The log of feedback. Empty: sqlite:<state_dir>/log.db.")
    policy: str = Field(default="default", description="The name under which apps ask for the policy, as `model`.")
    base_model: str = Field(
        default="", description="Directory or hub id of the base weights. Empty: the seed policy in <state_dir>/seed."
    )
    topic: str = Field(default="prefloop.feedback", description="The log's topic for what people said.")
    kafka: KafkaSection = Field(default_factory=KafkaSection, description="The Kafka cluster behind log_url.")
    preset: Preset = Field(
        default="default", description="Set of defaults: `default` for real traffic, `demo` for short worlds."
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
        """Order of precedence: arguments, environment, file, preset, default."""
        path = Path(os.environ.get("PREFLOOP_CONFIG", "prefloop.toml"))
        toml = TomlConfigSettingsSource(settings_cls, toml_file=path)
        return init_settings, env_settings, toml, PresetSource(settings_cls)


class PresetSource(PydanticBaseSettingsSource):
    """The weakest source: values of the preset that the stronger sources chose."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # presets are nested, so they are given whole by __call__

    def __call__(self) -> dict[str, Any]:
        assert issubclass(self.settings_cls, SharedSettings)
        return self.settings_cls.preset_values(str(self.current_state.get("preset", "default")))
