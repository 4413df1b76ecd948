"""What a host of engines for whole models reads: its section, and what all processes share."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator

from feedback.secret_files import ADMIN_KEY, locate_secret
from feedback.settings import HttpUrl, SharedSettings, load_settings


class EngineHostSection(BaseModel):
    """How `prefloop engine-host` runs at most one whole model, and tells the gateway where."""

    gateway_url: HttpUrl = Field(
        default="http://127.0.0.1:8800", description="The gateway, which says which whole models need an engine."
    )
    key_file: str = Field(default="", description="File with an operator's key. Empty: <state_dir>/secrets/admin_key.")
    host: str = Field(default="127.0.0.1", description="Address of `/livez`, `/readyz`, `/status` and `/metrics`.")
    port: int = Field(
        default=8805, ge=0, le=65535, description="Port of the same, on every host: free hosts ask the others there."
    )
    engine_host: str = Field(default="127.0.0.1", description="Address that the engine listens on.")
    engine_port: int = Field(default=8000, ge=1, le=65535, description="Port that the engine listens on.")
    advertise_url: HttpUrl = Field(
        default="",
        description="Where gateways reach the engine. Empty: this machine's address as the gateway sees it, and engine_port.",
    )
    directory: str = Field(
        default="",
        description="Where whole models are fetched to from checkpoints_url. Empty: <state_dir>/whole-models.",
    )
    engine_args: list[str] = Field(default=[], description="Further arguments of vLLM.")
    max_model_len: int = Field(default=0, ge=0, description="vLLM's --max-model-len; 0: the model's own.")
    poll_s: float = Field(default=1.0, gt=0, description="Pause between looks at what needs an engine.")
    silent_s: float = Field(
        default=60.0,
        gt=0,
        description="A registered engine of which neither itself nor its host answers for so long, and that the gateway does not"
        " reach either, is withdrawn by a host that is free.",
    )
    drain_s: float = Field(
        default=60.0, ge=0, description="How long a host that is stopped waits for the answers under way on its engine."
    )


class EngineHostSettings(SharedSettings):
    """Everything `prefloop engine-host` reads, from prefloop.toml and PREFLOOP_ variables."""

    engine_host: EngineHostSection = Field(
        default_factory=EngineHostSection, description="The host of engines for whole models."
    )

    @property
    def key_path(self) -> Path:
        """The file with an operator's key."""
        section = self.engine_host
        return Path(section.key_file) if section.key_file else locate_secret(self.state_dir, ADMIN_KEY)

    @property
    def models_dir(self) -> Path:
        """Where whole models are fetched to."""
        return Path(self.engine_host.directory) if self.engine_host.directory else self.state_dir / "whole-models"

    @model_validator(mode="after")
    def refuse_contradictions(self) -> Self:
        """Raises ValueError if the pages and the engine would want one port."""
        if self.engine_host.port == self.engine_host.engine_port:
            raise ValueError(f"engine_host.port and engine_host.engine_port are both {self.engine_host.port}")
        return self


if __name__ == "__main__":
    load_settings(EngineHostSettings)
