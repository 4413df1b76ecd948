"""The scorer, a process of its own beside the trainer, as settings."""

from typing import Literal

from pydantic import BaseModel, Field


class ScorerSection(BaseModel):
    """How the scorer listens, and how much it takes on at a time."""

    enabled: bool = Field(
        default=False,
        description="Have `prefloop up` and the demo run a scorer, on the third port above the gateway's, and tell the gateway of"
        " it (`gateway.scorer_url`). It holds a copy of the base in memory.",
    )
    host: str = Field(
        default="127.0.0.1", description="Address to listen on. It asks for no key: keep it from where strangers are."
    )
    port: int = Field(default=8803, ge=0, le=65535, description="Port to listen on.")
    device: Literal["", "cpu", "cuda"] = Field(
        default="", description="Where the scorer's copy of the base computes; empty: where the trainer's does."
    )
    torch_threads: int = Field(default=1, ge=1, description="Threads of torch on CPU.")
    max_waiting: int = Field(
        default=2, ge=0, description="Most requests that wait for the one being scored; others are refused at once."
    )
    max_body_bytes: int = Field(default=1_000_000, gt=0, description="Largest request body taken.")
    reload_every_s: float = Field(
        default=2.0, gt=0, description="Pause between looks at which version of the reward model is in use."
    )
