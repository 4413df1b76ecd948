"""The trainer's settings: when it learns, how a round trains, and what a checkpoint must pass before any traffic.

`preset = "demo"` replaces defaults by those for a short world with a tiny policy, `personal` by those for one person's
choices; values that were given explicitly still win. Run as a program it only says whether the settings can be used.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from feedback.database import locate_store
from feedback.settings import DatabaseUrl, HttpUrl, SharedSettings, load_settings
from trainer.sections.judging import GateSection, SamplingSection
from trainer.sections.model import ModelSection
from trainer.sections.reward import RewardSection, RewardsSection
from trainer.sections.scorer import ScorerSection
from trainer.sections.training import DpoSection, PpoSection, RoundKind, SftSection


class TrainerSection(BaseModel):
    """Where the trainer listens, when it starts a round, and how much of the machine it takes."""

    host: str = Field(default="127.0.0.1", description="Address of the status server.")
    port: int = Field(default=8802, ge=0, le=65535, description="Port of the status server.")
    gateway_url: HttpUrl = Field(default="http://127.0.0.1:8800", description="Where checkpoints are registered.")
    gateway_timeout_s: float = Field(default=5.0, gt=0, description="Longest wait for one answer of the gateway.")
    register_every_s: float = Field(
        default=15.0, gt=0, description="Pause between looks at which published checkpoints the gateway lacks."
    )
    collect_every_s: float = Field(
        default=3600.0, gt=0, description="Pause between collections of what no checkpoint of the store names any more."
    )
    collect_grace_s: float = Field(
        default=86_400.0,
        ge=0,
        description="Age from which a collection takes such a file. While an upload is under way nothing is collected; one that"
        " began a day ago is taken for dead.",
    )
    database_url: DatabaseUrl = Field(default="", description="SQLAlchemy URL; empty means `<state_dir>/trainer.db`.")
    database_wait_s: float = Field(
        default=60.0, ge=0, description="How long the start waits for a database that does not answer, before it fails."
    )
    lease_s: float = Field(
        default=15.0,
        ge=1,
        description="Of several trainers on one PostgreSQL one works: after so long a silence of its another takes over.",
    )
    seed: int = Field(default=0, ge=0, description="Makes rounds repeatable.")
    policy: str = Field(default="default", description="The policy that is trained: rows of others are left alone.")
    round: RoundKind | Annotated[list[RoundKind], Field(min_length=1)] = Field(
        default="dpo",
        description="How a round learns: from preferences (dpo), from answers of its own that the reward model scores (ppo),"
        " or from demonstrations (sft). A list: rounds take turns, and a kind that is not due is passed over.",
    )
    round_every_preferences: int = Field(
        default=1000, ge=1, description="New decisive preferences that make a round due."
    )
    round_every_minutes: float = Field(
        default=24 * 60, ge=0, description="Time after which a round is due with fewer preferences; 0 means never."
    )
    round_min_preferences: int = Field(
        default=200, ge=1, description="Fewest new decisive preferences of a round that is due by time."
    )
    least_evidence: float = Field(
        default=100.0,
        ge=0,
        description="E-value that choices can be foreseen better than by a coin, without which no round trains on them; 0:"
        " rounds do not wait for it, as where one person will judge what comes of them.",
    )
    sft_every_demonstrations: int = Field(
        default=100, ge=1, description="New demonstrations that make an sft round due."
    )
    edit_weight: float = Field(
        default=1.0,
        ge=0,
        description="What an edited text, preferred over the answer it was made of, counts beside a choice; 0: edits make no"
        " pairs.",
    )
    recency_half_life_days: float = Field(
        default=90.0, gt=0, description="Age at which a choice counts half in rounds and in the reward model's updates."
    )
    snapshot_every_steps: int = Field(
        default=10, ge=1, description="Steps between snapshots of a round: what a kill can cost."
    )
    wandb_project: str = Field(
        default="",
        description="Weights & Biases project for curves, if `wandb` is installed; empty: TensorBoard alone.",
    )
    rounds_during_rollout: bool = Field(default=False, description="Train while a canary is on trial.")
    max_attempts: int = Field(
        default=3, ge=1, description="How often the trainer may die in a round that comes no further between."
    )
    nice: int = Field(
        default=5, ge=0, le=19, description="Added to the process's niceness, so that serving comes first."
    )
    num_processes: int = Field(
        default=1,
        ge=1,
        description="Processes that train a round on a machine, each on a GPU of its own; the model is split among them (preset"
        " fsdp) if one cannot hold it.",
    )
    num_nodes: int = Field(
        default=1,
        ge=1,
        description="Machines that train a round together, this one included, each with num_processes; the others run"
        " `python -m trainer.node`.",
    )
    rendezvous: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9._-]+:\d{1,5})?$",
        description="host:port at which the other nodes reach this one, where there are several: the port is opened while a"
        " round trains.",
    )
    nodes_wait_s: float = Field(default=600.0, gt=0, description="How long a round's nodes wait for each other.")
    worker_device: Literal["", "cpu", "cuda"] = Field(
        default="", description="Where these processes compute, if there are several; empty: where the trainer does."
    )
    torch_threads: int = Field(default=1, ge=1, description="Threads of torch on CPU.")
    poll_s: float = Field(default=0.5, gt=0, description="Pause of the learner when there is nothing to do.")
    consume_batch: int = Field(default=500, ge=1, description="Most records of one partition in one transaction.")
    model: ModelSection = Field(default_factory=ModelSection, description="The base model and its adapters.")
    reward: RewardSection = Field(default_factory=RewardSection, description="The reward model's updates.")
    rewards: RewardsSection = Field(default_factory=RewardsSection, description="What a round's reward is made of.")
    dpo: DpoSection = Field(default_factory=DpoSection, description="DPO rounds.")
    ppo: PpoSection = Field(default_factory=PpoSection, description="PPO rounds.")
    sft: SftSection = Field(default_factory=SftSection, description="SFT rounds.")
    sampling: SamplingSection = Field(default_factory=SamplingSection, description="Sampled answers.")
    gate: GateSection = Field(default_factory=GateSection, description="The offline gate.")
    scorer: ScorerSection = Field(
        default_factory=ScorerSection, description="The process that says which answers to ask about."
    )

    @model_validator(mode="after")
    def refuse_contradictions(self) -> Self:
        """Raises ValueError if rounds by time would never come before those by number, and for PPO in several processes."""
        is_asked = self.round_every_minutes > 0 and "round_min_preferences" in self.model_fields_set
        if is_asked and self.round_min_preferences > self.round_every_preferences:
            raise ValueError(
                f"round_min_preferences ({self.round_min_preferences}) is above round_every_preferences"
                f" ({self.round_every_preferences}): no round would ever be due by time"
            )
        if self.is_distributed and "ppo" in self.round_kinds:
            name, number = max(("num_processes", self.num_processes), ("num_nodes", self.num_nodes), key=lambda x: x[1])
            raise ValueError(f"round ppo trains in one process: set {name} ({number}) to 1, or round to dpo")
        if self.num_nodes > 1 and not self.rendezvous:
            raise ValueError(f"num_nodes ({self.num_nodes}) needs rendezvous: where the others reach this machine")
        return self

    @property
    def half_life_s(self) -> float:
        """The age at which a choice counts half."""
        return 86_400.0 * self.recency_half_life_days

    @property
    def is_distributed(self) -> bool:
        """Whether rounds train in processes of their own."""
        return self.num_processes > 1 or self.num_nodes > 1

    @property
    def round_kinds(self) -> list[RoundKind]:
        """The kinds that rounds take in turn."""
        return list(self.round) if isinstance(self.round, list) else [self.round]


_DEMO: dict[str, Any] = {
    "round_every_preferences": 400,
    "round_every_minutes": 0.0,
    "register_every_s": 5.0,
    # At a beta of .1 and with more steps it forgets facts that nobody asks about (docs/log.md).
    "dpo": {"lr": 1e-3, "epochs": 3, "max_new_pairs": 400, "beta": 0.3, "max_steps": 150},
    # At the default price of KL it went 11 nats to what the reward model overrates: every answer began "question!".
    "ppo": {"iterations": 8, "max_tokens": 48, "kl_coefficient": 0.3},
}
# 135M parameters on two cores: a round of 160 pairs takes about ten minutes. At the default nll_weight it went four times as far
# from the base for the same win rate (docs/log.md). Beside people the engine gave the trainer 30 tokens a second, the trainer's own
# copy some 105.
_DEMO_SMOLLM2: dict[str, Any] = {
    "round_every_preferences": 160,
    "round_every_minutes": 0.0,
    "register_every_s": 5.0,
    "reward": {"update_every_preferences": 32},
    "dpo": {"lr": 3e-4, "epochs": 2, "max_new_pairs": 200, "nll_weight": 2.0},
    "sampling": {"rounds_by": "trainer"},
    "ppo": {"iterations": 6, "prompts_per_iteration": 16, "epochs": 2, "max_tokens": 120},
    "gate": {
        "sets": ["assistant"],
        "samples_per_prompt": 1,
        "ladder": False,
        "max_tokens": 120,
    },  # some five minutes at 60 tokens a second
}
# One person's choices: a round every twenty, in minutes on two cores, which that person will judge.
_PERSONAL: dict[str, Any] = {
    "round_every_preferences": 20,
    "round_every_minutes": 0.0,
    "least_evidence": 0.0,
    "register_every_s": 2.0,
    "reward": {"update_every_preferences": 4},
    "dpo": {"lr": 5e-4, "epochs": 6, "batch_size": 4, "max_new_pairs": 40, "labelled_share": 0.3, "restart_every": 0},
    "sampling": {"rounds_by": "trainer"},
    "gate": {
        "gain": "positive",
        "max_train_prompts": 16,
        "samples_per_prompt": 1,
        "ladder": False,
        "max_tokens": 160,
    },
}
_PRESETS = {"demo": _DEMO, "demo-smollm2": _DEMO_SMOLLM2, "personal": _PERSONAL}


class TrainerSettings(SharedSettings):
    """Everything the trainer reads, from prefloop.toml and PREFLOOP_ variables."""

    trainer: TrainerSection = Field(default_factory=TrainerSection, description="Rounds, checkpoints, status.")

    @classmethod
    def preset_values(cls, preset: str) -> dict[str, Any]:
        return {"trainer": _PRESETS[preset]} if preset in _PRESETS else {}

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
    def auditor_dir(self) -> Path:
        """Where the auditor's state is kept."""
        return self.state_dir / "auditor"

    @property
    def rounds_dir(self) -> Path:
        """Where the round under way keeps its steps."""
        return self.state_dir / "rounds"

    @property
    def references_dir(self) -> Path:
        """Where log-probabilities under the reference are kept from round to round."""
        return self.state_dir / "references"

    @property
    def frozen_set(self) -> Path:
        """Where an operator puts what the offline gate judges by; it wins over the file of this name beside the base."""
        return self.state_dir / "frozen.jsonl"

    @property
    def tensorboard_dir(self) -> Path:
        return self.state_dir / "tensorboard"


if __name__ == "__main__":
    load_settings(TrainerSettings)
