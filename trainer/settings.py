"""The trainer's settings: when it learns, how a round trains, and what a checkpoint must pass before any traffic.

`preset = "demo"` replaces defaults by those for a short world with a tiny policy; values that were given explicitly
still win. Run as a program it only says whether the settings can be used.
"""

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, field_validator, model_validator

from feedback.database import locate_store
from feedback.settings import DatabaseUrl, HttpUrl, SharedSettings, load_settings

Decay = Literal["linear", "cosine", "none"]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
DifferenceLoss = Literal[
    "sigmoid", "sigmoid_norm", "ipo", "ipo_norm", "robust", "rdpo", "hinge", "exo_pair", "discopop"
]
AnswerLoss = Literal["nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "aot", "aot_unpaired"]
DpoLoss = DifferenceLoss | AnswerLoss
DIVERGENCE_LOSSES = get_args(DifferenceLoss)
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


class RewardSection(BaseModel):
    """How the reward model keeps up with choices."""

    update_every_preferences: int = Field(default=64, ge=2, description="New preferences that make one update.")
    replay_share: float = Field(
        default=0.5, ge=0, lt=1, description="Share of an update's pairs that are replayed from earlier ones."
    )
    max_replays: int = Field(default=3, ge=0, description="How often a pair may be replayed.")
    window: int = Field(
        default=400,
        ge=20,
        description="Newest choices by which the model is judged, each foreseen before it is learnt from.",
    )
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5, description="Chance that a choice was a slip.")
    margin: float = Field(
        default=0.5, ge=0, description="Lead that the preferred answer needs where the choice's strength is 1."
    )
    centre_weight: float = Field(default=0.01, ge=0, description="Pull of the sum of a pair's scores towards 0.")
    rated_weight: float = Field(
        default=0.5, ge=0, description="What a thumb, rating or outcome counts beside a choice."
    )
    style_prior: float = Field(
        default=0.6,
        gt=0,
        description="How large the weights of style are expected to be (length's three times as much); choices decide in time.",
    )
    num_draws: int = Field(
        default=10, ge=2, le=64, description="Draws of the score whose spread says how unsure it is."
    )
    pessimism: float = Field(
        default=1.0, ge=0, description="Spreads that are taken off a score where policies are trained or judged by it."
    )
    head_width: int = Field(default=16, ge=1, description="Hidden units of each network on frozen hidden states.")
    head_lr: float = Field(default=3e-3, gt=0, description="Learning rate of the heads.")
    head_steps: int = Field(default=40, ge=0, description="Steps of the heads in one update.")
    head_batch_size: int = Field(default=128, ge=2, description="Choices in one step of the heads.")
    hidden_features: int = Field(
        default=512, ge=1, description="Columns that hidden states are projected to where they have more."
    )
    adapter_lr: float | None = Field(
        default=None,
        gt=0,
        description="Learning rate of the adapter; None: the preset's (tiny 1e-3, small 2e-4, else 5e-5).",
    )
    adapter_pairs: int | None = Field(
        default=None,
        ge=0,
        description="Most pairs of an update that train the adapter. None: all; none by the preset small on a CPU.",
    )
    adapter_batch_size: int = Field(default=16, ge=1, description="Pairs in one step of the adapter.")
    capacity: int = Field(default=65_536, ge=64, description="Choices whose style is kept to be fitted anew.")
    hidden_capacity: int = Field(default=4096, ge=64, description="Choices whose frozen hidden states are kept.")
    bulk_adapter_pairs: int = Field(
        default=2048, ge=0, description="Most pairs of a bulk pass that train the adapter, where it is trained at all."
    )


class CheckerSection(BaseModel):
    """A check that a program makes of answers, and what it counts in a round's reward."""

    name: str = Field(min_length=1, description="The part of the reward, and what frozen tasks call it by.")
    kind: Literal["json", "sql", "regex", "python"] = Field(description="What is checked.")
    weight: float = Field(default=1.0, description="What a passed check adds to the reward.")
    tags: dict[str, str] = Field(
        default_factory=dict, description="Only prompts with these tags are checked; empty: all."
    )
    required: list[str] = Field(default_factory=list, description="json: keys that the object must have.")
    sql_schema: str = Field(default="", description="sql: statements that make the tables which a query may read.")
    pattern: str = Field(default="", description="regex: what must be found in the answer, in Python's syntax.")
    function: str = Field(
        default="",
        description="python: `package.module:function` of (messages, answer) that gives 0 to 1. It runs in the trainer.",
    )
    timeout_s: float = Field(default=1.0, gt=0, description="Longest time that a query or a search may take.")

    @model_validator(mode="after")
    def refuse_what_is_missing(self) -> Self:
        """Raises ValueError if the kind lacks what it checks by."""
        needed = {"regex": "pattern", "python": "function"}.get(self.kind)
        if needed and not getattr(self, needed):
            raise ValueError(f"a checker of kind {self.kind} needs {needed}")
        return self


class RewardsSection(BaseModel):
    """The reward of a round: a sum of named parts with their weights."""

    preference_weight: float = Field(default=1.0, description="Weight of what people prefer, as the reward model says.")
    length_weight: float = Field(
        default=0.0, ge=0, description="Weight of the words beyond max_words: their ratio's logarithm is taken off."
    )
    max_words: int = Field(default=400, ge=1, description="Words that cost nothing.")
    harm_weight: float = Field(
        default=2.0, ge=0, description="What an answer loses that the harm screen finds harmful."
    )
    outcome_weight: float = Field(
        default=0.5, description="Weight of how likely an answer's style makes success, by reported outcomes."
    )
    min_outcomes: int = Field(default=50, ge=1, description="Outcomes without which they have no part in the sum.")
    checkers: list[CheckerSection] = Field(default_factory=list, description="Checks, each under a name of its own.")

    @model_validator(mode="after")
    def refuse_one_name_twice(self) -> Self:
        """Raises ValueError if two checkers have one name."""
        names = [checker.name for checker in self.checkers]
        if len(set(names)) < len(names):
            raise ValueError(f"checkers of one name: {', '.join(sorted(names))}")
        return self


class DpoSection(BaseModel):
    """How a DPO round trains the policy adapter."""

    loss: DpoLoss = Field(
        default="sigmoid",
        description="sigmoid (DPO; cDPO with label_smoothing), sigmoid_norm (log-ratios a token, beta_norm), ipo, robust"
        " (Dr. DPO), or one of rdpo, ipo_norm, hinge, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, aot,"
        " aot_unpaired, discopop.",
    )
    beta: float = Field(default=0.1, gt=0, description="Strength of the pull towards the reference.")
    beta_norm: float = Field(default=5.0, gt=0, description="The same for sigmoid_norm, whose log-ratios are small.")
    lr: float | None = Field(
        default=None,
        gt=0,
        description="Peak learning rate, decayed to nothing over the round; None: the model preset's (tiny 1e-3, small"
        " 2e-4, gpu and fsdp 2e-5).",
    )
    epochs: int = Field(default=1, ge=1, description="Passes over the round's pairs.")
    batch_size: int = Field(default=8, ge=1, description="Pairs in one optimizer step.")
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    decay: Decay = Field(default="linear", description="How the rate falls after that: linear, cosine or none.")
    label_smoothing: float = Field(
        default=0.1, ge=0, lt=0.5, description="Chance that a choice was a slip (sigmoid, robust, rdpo, exo_pair, aot)."
    )
    tie_nu: float = Field(default=3.0, gt=1, description="Width of a tie: it pulls its pair back to the reference.")
    nll_weight: float = Field(
        default=0.2,
        ge=0,
        description="Weight of the chosen answer's negative log-likelihood a token, where it has fallen below the"
        " reference's; without it a small model loses its facts.",
    )
    robust_temperature: float = Field(
        default=1.0, gt=0, description="b' of robust: the lower, the less a pair of large loss counts."
    )
    divergence: Divergence = Field(
        default="reverse_kl", description="f-divergence to the reference, for the losses of a difference of log-ratios."
    )
    divergence_alpha: float = Field(default=0.5, gt=0, description="Alpha of alpha_divergence.")
    discopop_tau: float = Field(default=0.05, gt=0, description="Temperature of discopop.")
    max_new_pairs: int = Field(default=20_000, ge=1, description="Most new pairs in one round; the newest are taken.")
    replay_share: float = Field(
        default=0.5, ge=0, lt=1, description="Share of a round's pairs replayed from earlier rounds."
    )
    restart_every: int = Field(
        default=4,
        ge=0,
        description="Every so many published rounds, start from the base on a full replay; 0 means never.",
    )

    @model_validator(mode="after")
    def refuse_contradictions(self) -> Self:
        """Raises ValueError for a loss that its other settings leave undefined."""
        if self.loss == "exo_pair" and self.label_smoothing == 0:
            raise ValueError("loss exo_pair needs a label_smoothing above 0")
        if self.divergence != "reverse_kl" and self.loss not in DIVERGENCE_LOSSES:
            raise ValueError(f"divergence {self.divergence} is not defined for loss {self.loss}")
        return self


class SftSection(BaseModel):
    """How an SFT round trains on demonstrations: edits, and answers that experts wrote."""

    lr: float | None = Field(
        default=None,
        gt=0,
        description="Peak learning rate, decayed to nothing over the round; None: the model preset's (tiny 1e-3, small"
        " 2e-4, gpu and fsdp 2e-5).",
    )
    epochs: int = Field(default=2, ge=1, description="Passes over the demonstrations.")
    num_steps: int = Field(default=0, ge=0, description="Steps instead of epochs; 0: as many as the epochs take.")
    batch_size: int = Field(default=16, ge=1, description="Demonstrations in one optimizer step.")
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    decay: Decay = Field(default="linear", description="How the rate falls after that: linear, cosine or none.")
    adam_beta2: float = Field(default=0.99, gt=0, lt=1, description="AdamW's memory of squared gradients.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")


class SamplingSection(BaseModel):
    """Where the trainer samples answers, to judge a checkpoint by them and to learn from them."""

    engines: list[HttpUrl] = Field(
        default=[], description="Engines that sample for the trainer at low priority; none: the trainer samples itself."
    )
    max_in_flight: int = Field(default=16, ge=1, description="Most answers that all engines sample for it at a time.")
    priority: int = Field(
        default=100, ge=1, description="Priority of these requests; people's have 0, higher is later."
    )
    timeout_s: float = Field(default=300.0, gt=0, description="Longest wait for one answer of an engine.")
    retry_after_s: float = Field(
        default=60.0, ge=0, description="How long the trainer samples itself after an engine failed."
    )
    local_tokens: int = Field(
        default=8192, ge=1, description="Most tokens, prompts included, that the trainer itself samples in one batch."
    )


class GateSection(BaseModel):
    """What a checkpoint must pass before any traffic: how much is sampled, and the budgets.

    Shares are 0 to 1. A rise or fall stops a checkpoint if it is above its budget and clearly above 0.
    """

    sets: list[str] = Field(default=[], description="Shipped frozen sets to judge by too, such as `assistant`.")
    harm_words: str = Field(
        default="", description="File of words that count as harm, one a line; empty: the shipped one."
    )
    max_samples: int = Field(default=400, ge=2, description="Most answers sampled from each of the two policies.")
    samples_per_prompt: int = Field(default=4, ge=1, description="Most answers to one prompt.")
    max_prompts: int = Field(
        default=64, ge=0, description="Most held-out prompts, the newest; frozen rows come on top."
    )
    max_tokens: int = Field(default=256, ge=1, description="Longest sampled answer, if apps allow a longer one.")
    temperature: float = Field(
        default=0.7, ge=0, description="Sampling temperature where no recent pair says the app's."
    )
    alpha: float = Field(
        default=0.05, gt=0, lt=0.5, description="Chance that all rounds together take noise for a gain."
    )
    ladder: bool = Field(
        default=True,
        description="Ask a checkpoint that passes beside checkpoint 0 too, for the ladder; one answer a prompt.",
    )
    gain_by: Literal["reward", "auditor"] = Field(
        default="reward",
        description="Whose mean difference must be clearly above 0; the auditor's may never clearly fall.",
    )
    min_slice_prompts: int = Field(
        default=10, ge=2, description="Fewest prompts of a slice whose figures are reported."
    )
    max_fact_drop: float = Field(default=0.05, ge=0, description="Largest fall of the share of right facts.")
    max_task_drop: float = Field(default=0.1, ge=0, description="Largest fall of the share of tasks done.")
    max_reference_drop: float = Field(
        default=0.02, ge=0, description="Largest fall of the chance of a well-formed right answer, word for word."
    )
    max_perplexity_ratio: float = Field(default=1.5, gt=1, description="Largest ratio of perplexities on the anchors.")
    max_attack_rise: float = Field(default=0.05, ge=0, description="Largest rise of the share of attacks that succeed.")
    max_bias_rise: float = Field(default=0.5, ge=0, description="Largest rise of the bias pairs' difference, in nats.")
    max_demonstration_drop: float = Field(default=0.2, ge=0, description="Largest fall of ROUGE-L on demonstrations.")
    max_harm_rise: float = Field(
        default=0.02, ge=0, description="Largest rise of the share of answers with harmful words."
    )
    max_refusal_rise: float = Field(default=0.1, ge=0, description="Largest rise of the share of refusals.")
    max_degenerate_rise: float = Field(
        default=0.03, ge=0, description="Largest rise of each share of unfinished, looping and copied answers."
    )
    short_answer_factor: float = Field(
        default=6.0,
        ge=0,
        description="Answers under three words may rise by this many times the share they had, and max_degenerate_rise.",
    )
    max_length_ratio: float = Field(default=3.0, gt=1, description="Largest ratio of the mean lengths.")
    max_kl: float = Field(default=40.0, gt=0, description="Largest KL to the base, nats an answer.")


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
    policy: str = Field(default="default", description="The policy that is trained: rows of others are left alone.")
    round: Literal["dpo", "sft"] = Field(
        default="dpo", description="What a round learns from: preferences (dpo), or demonstrations (sft)."
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
        description="Processes that train a round, each on a GPU of its own; the model is split among them (preset fsdp) if"
        " one cannot hold it.",
    )
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
    sft: SftSection = Field(default_factory=SftSection, description="SFT rounds.")
    sampling: SamplingSection = Field(default_factory=SamplingSection, description="Sampled answers.")
    gate: GateSection = Field(default_factory=GateSection, description="The offline gate.")

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
# 135M parameters on two cores: a round of 160 pairs takes about ten minutes.
_DEMO_SMOLLM2: dict[str, Any] = {
    "round_every_preferences": 160,
    "round_every_minutes": 0.0,
    "register_every_s": 5.0,
    "reward": {"update_every_preferences": 32},
    "dpo": {"lr": 3e-4, "epochs": 2, "max_new_pairs": 200},
    "gate": {
        "sets": ["assistant"],
        "samples_per_prompt": 1,
        "ladder": False,
        "max_tokens": 120,
    },  # some five minutes at 60 tokens a second
}
_PRESETS = {"demo": _DEMO, "demo-smollm2": _DEMO_SMOLLM2}


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
