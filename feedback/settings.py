"""Settings that every process shares: where state lies, the log, the policy's name.

One TOML file ($PREFLOOP_CONFIG, else ./prefloop.toml), overridden by PREFLOOP_… environment variables, overridden by
arguments. A preset replaces defaults only: whatever is written down anywhere wins over it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

Preset = Literal["default", "demo"]


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
    preset: Preset = Field(
        default="default", description="Set of defaults: `default` for real traffic, `demo` for short worlds."
    )

    @property
    def log(self) -> str:
        """The log's URL, with the default filled in."""
        return self.log_url or f"sqlite:{self.state_dir / 'log.db'}"

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
