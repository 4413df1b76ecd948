"""The trainer's settings: when it learns, how a round trains, and what a checkpoint must pass before any traffic.

`preset = "demo"` replaces defaults by those for a short world with a tiny policy; values that were given explicitly
still win. Run as a program it only says whether the settings can be used.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from feedback.database import locate_store
from feedback.settings import DatabaseUrl, HttpUrl, SharedSettings, load_settings

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes


class ModelSection(BaseModel):
    """How the base model is held and computed; what is left out follows from the preset, the model and the machine."""

    preset: Literal["auto", "tiny", "small", "gpu", "fsdp"] = Field(
        default="auto", description="Values for all that is not set; auto chooses by the model's size and the device."
    )
    device: str = Field(
        default="", description="Where torch computes: cpu, cuda or cuda:1; empty: a GPU if there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="What the model computes in; auto is bfloat16 where the device is fast in it."
    )
    max_tokens: int | None = Field(
        default=None, ge=2, description="Longest prompt with its answer; longer rows are set aside. None: the model's."
    )
    lora_rank: int | None = Field(default=None, description="Rank of the adapters, one that vLLM takes.")
    lora_alpha: int | None = Field(default=None, ge=1, description="Scale of the adapters; None is twice the rank.")
    target_modules: list[str] | None = Field(
        default=None, description="Names of the layers that get adapters; None: all linear ones but the lm_head."
    )
    token_budget: int | None = Field(default=None, ge=1, description="Most padded tokens in one forward.")
    logits_mb: int | None = Field(default=None, ge=1, description="Memory for logits at one time, in MiB.")
    memory_mb: int | None = Field(
        default=None,
        ge=0,
        description="Memory for training in MiB: batches and gradient checkpointing follow from it. 0: no limit.",
    )
    share_prompt: Literal["auto", "never"] = Field(
        default="auto", description="Compute a prompt once for both of its answers, where the model can."
    )

    @field_validator("lora_rank")
    @classmethod
    def refuse_unknown_ranks(cls, rank: int | None) -> int | None:
        """Raises ValueError for a rank that vLLM refuses."""
        if rank is not None and rank not in LORA_RANKS:
            raise ValueError(f"vLLM takes the ranks {', '.join(map(str, LORA_RANKS))}, not {rank}")
        return rank


class RewardSection(BaseModel):
    """How the reward model keeps up with choices."""

    update_every_preferences: int = Field(default=64, ge=2, description="New preferences that make one update.")
    replay_share: float = Field(
        default=0.5, ge=0, lt=1, description="Share of an update's pairs that are replayed from earlier ones."
    )
    max_replays: int = Field(default=3, ge=0, description="How often a pair may be replayed.")


class DpoSection(BaseModel):
    """How a DPO round trains the policy adapter."""

    beta: float = Field(default=0.1, gt=0, description="Strength of the pull towards the reference.")
    lr: float = Field(default=1e-5, gt=0, description="Peak learning rate, decayed to nothing over the round.")
    epochs: int = Field(default=1, ge=1, description="Passes over the round's pairs.")
    batch_size: int = Field(default=8, ge=1, description="Pairs in one optimizer step.")
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5, description="Chance that a choice was a slip (cDPO).")
    max_new_pairs: int = Field(default=20_000, ge=1, description="Most new pairs in one round; the newest are taken.")
    replay_share: float = Field(
        default=0.5, ge=0, lt=1, description="Share of a round's pairs replayed from earlier rounds."
    )
    restart_every: int = Field(
        default=4,
        ge=0,
        description="Every so many published rounds, start from the base on a full replay; 0 means never.",
    )


class TrainerSection(BaseModel):
    """Where the trainer listens, when it starts a round, and how much of the machine it takes."""

    host: str = Field(default="127.0.0.1", description="Address of the status server.")
    port: int = Field(default=8802, ge=0, le=65535, description="Port of the status server.")
    gateway_url: HttpUrl = Field(default="http://127.0.0.1:8800", description="Where checkpoints are registered.")
    gateway_timeout_s: float = Field(default=5.0, gt=0, description="Longest wait for one answer of the gateway.")
    register_every_s: float = Field(
        default=15.0, gt=0, description="Pause between looks at which published checkpoints the gateway lacks."
    )
    database_url: DatabaseUrl = Field(default="", description="SQLAlchemy URL; empty means `<state_dir>/trainer.db`.")
    database_wait_s: float = Field(
        default=60.0, ge=0, description="How long the start waits for a database that does not answer, before it fails."
    )
    seed: int = Field(default=0, ge=0, description="Makes rounds repeatable.")
    round_every_preferences: int = Field(
        default=1000, ge=1, description="New decisive preferences that make a round due."
    )
    round_every_minutes: float = Field(
        default=24 * 60, ge=0, description="Time after which a round is due with fewer preferences; 0 means never."
    )
    round_min_preferences: int = Field(
        default=200, ge=1, description="Fewest new decisive preferences of a round that is due by time."
    )
    rounds_during_rollout: bool = Field(default=False, description="Train while a canary is on trial.")
    max_attempts: int = Field(
        default=3, ge=1, description="How often a round is begun again after the trainer died in it."
    )
    nice: int = Field(
        default=5, ge=0, le=19, description="Added to the process's niceness, so that serving comes first."
    )
    torch_threads: int = Field(default=1, ge=1, description="Threads of torch on CPU.")
    poll_s: float = Field(default=0.5, gt=0, description="Pause of the learner when there is nothing to do.")
    consume_batch: int = Field(default=500, ge=1, description="Most records of one partition in one transaction.")
    model: ModelSection = Field(default_factory=ModelSection, description="The base model and its adapters.")
    reward: RewardSection = Field(default_factory=RewardSection, description="The reward model's updates.")
    dpo: DpoSection = Field(default_factory=DpoSection, description="DPO rounds.")

    @model_validator(mode="after")
    def refuse_contradictions(self) -> Self:
        """Raises ValueError if rounds that are asked for by time would never come before those by number."""
        is_asked = self.round_every_minutes > 0 and "round_min_preferences" in self.model_fields_set
        if is_asked and self.round_min_preferences > self.round_every_preferences:
            raise ValueError(
                f"round_min_preferences ({self.round_min_preferences}) is above round_every_preferences"
                f" ({self.round_every_preferences}): no round would ever be due by time"
            )
        return self


_DEMO: dict[str, Any] = {
    "round_every_preferences": 400,
    "round_every_minutes": 0.0,
    "register_every_s": 5.0,
    "dpo": {"lr": 1e-3, "epochs": 3, "max_new_pairs": 400},
}


class TrainerSettings(SharedSettings):
    """Everything the trainer reads, from prefloop.toml and PREFLOOP_ variables."""

    trainer: TrainerSection = Field(default_factory=TrainerSection, description="Rounds, checkpoints, status.")

    @classmethod
    def preset_values(cls, preset: str) -> dict[str, Any]:
        return {"trainer": _DEMO} if preset == "demo" else {}

    @property
    def trainer_database(self) -> str:
        """The SQLAlchemy URL of the trainer's database."""
        return locate_store("trainer", self.state_dir, self.trainer.database_url)

    @property
    def checkpoints_dir(self) -> Path:
        return self.state_dir / "checkpoints"

    @property
    def reward_dir(self) -> Path:
        """Where the reward model's state is kept."""
        return self.state_dir / "reward"

    @property
    def frozen_set(self) -> Path:
        """Where an operator puts what the offline gate judges by; it wins over the file of this name beside the base."""
        return self.state_dir / "frozen.jsonl"

    @property
    def tensorboard_dir(self) -> Path:
        return self.state_dir / "tensorboard"


if __name__ == "__main__":
    load_settings(TrainerSettings)
