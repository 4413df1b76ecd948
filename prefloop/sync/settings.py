"""What the sidecar that fetches checkpoints reads: its section, and what all processes share."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator

from feedback.secret_files import ADMIN_KEY, locate_secret
from feedback.settings import HttpUrl, SharedSettings, load_settings


class SyncSection(BaseModel):
    """How `prefloop sync` keeps the checkpoints of a store in a directory beside an engine."""

    directory: str = Field(
        default="",
        description="Where fetched checkpoints lie, a folder per id: the volume that `gateway.engine_checkpoints_dir` is in the"
        " engine. Needed by `prefloop sync`; it may be empty at every start.",
    )
    gateway_url: HttpUrl = Field(
        default="http://127.0.0.1:8800", description="The gateway, which says what may serve. It need not be ready."
    )
    key_file: str = Field(default="", description="File with an operator's key. Empty: <state_dir>/secrets/admin_key.")
    host: str = Field(default="127.0.0.1", description="Address of `/livez`, `/readyz` and `/metrics`.")
    port: int = Field(default=8804, ge=0, le=65535, description="Port of the same.")
    poll_s: float = Field(default=1.0, gt=0, description="Pause between looks at what may serve.")
    retry_refused_s: float = Field(
        default=60.0,
        gt=0,
        description="Pause before a checkpoint that was refused (altered, not signed) is tried again.",
    )


class SyncSettings(SharedSettings):
    """Everything `prefloop sync` reads, from prefloop.toml and PREFLOOP_ variables."""

    sync: SyncSection = Field(default_factory=SyncSection, description="The sidecar that fetches checkpoints.")

    @property
    def key_path(self) -> Path:
        """The file with an operator's key."""
        return Path(self.sync.key_file) if self.sync.key_file else locate_secret(self.state_dir, ADMIN_KEY)


class RunningSyncSettings(SyncSettings):
    """The same, of a sidecar that starts."""

    @model_validator(mode="after")
    def require_places(self) -> Self:
        """Raises ValueError if it is not said where from and where to."""
        if not self.checkpoints_url:
            raise ValueError("checkpoints_url is not set: there is no store to fetch from")
        if not self.sync.directory:
            raise ValueError("sync.directory is not set: there is nowhere to put checkpoints")
        return self


if __name__ == "__main__":
    load_settings(RunningSyncSettings)
