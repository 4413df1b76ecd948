"""How the base model is held and computed, as settings."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator

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
        description="Memory for training in MiB: batches and gradient checkpointing follow from it. 0: no limit. None: the"
        " preset's; on a GPU what engine_gpu_share leaves.",
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
