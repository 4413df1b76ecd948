"""How DPO, PPO and SFT rounds train, as settings."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, Field, model_validator

RoundKind = Literal["dpo", "ppo", "sft"]
Decay = Literal["linear", "cosine", "none"]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
DifferenceLoss = Literal[
    "sigmoid", "sigmoid_norm", "ipo", "ipo_norm", "robust", "rdpo", "hinge", "exo_pair", "discopop"
]
AnswerLoss = Literal["nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "aot", "aot_unpaired"]
DpoLoss = DifferenceLoss | AnswerLoss
DIVERGENCE_LOSSES = get_args(DifferenceLoss)


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
    max_steps: int = Field(
        default=0,
        ge=0,
        description="Most optimizer steps of a round, however many pairs it has: of more pairs it sees as many as fit, drawn at"
        " random; 0: as many as the passes take.",
    )
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
    labelled_share: float = Field(
        default=0.0,
        ge=0,
        le=0.3,
        description="Most of a round's pairs that may be fresh answers of the policy, labelled by the reward model; 0: none.",
    )
    labelled_samples: int = Field(
        default=4, ge=2, description="Answers sampled for such a pair, of which the reward model picks two."
    )
    labelled_min_probability: float = Field(
        default=0.7,
        ge=0.5,
        lt=1,
        description="How likely a person must agree with such a label; pairs of less are dropped.",
    )
    labelled_min_accuracy: float = Field(
        default=0.6,
        ge=0.5,
        lt=1,
        description="Share of the last choices that the reward model must have foreseen to label any.",
    )
    restart_every: int = Field(
        default=4,
        ge=0,
        description="Start from the base on a full replay every so many published rounds, and after one that went on from stable"
        " and was stopped; 0 means never.",
    )
    restart_min_rows: int = Field(
        default=500,
        ge=0,
        description="Pairs that must be there to start from the base after so many rounds: one round on fewer does not make again what"
        " many made.",
    )

    @model_validator(mode="after")
    def refuse_contradictions(self) -> Self:
        """Raises ValueError for a loss that its other settings leave undefined."""
        if self.loss == "exo_pair" and self.label_smoothing == 0:
            raise ValueError("loss exo_pair needs a label_smoothing above 0")
        if self.divergence != "reverse_kl" and self.loss not in DIVERGENCE_LOSSES:
            raise ValueError(f"divergence {self.divergence} is not defined for loss {self.loss}")
        return self


class PpoSection(BaseModel):
    """How a PPO round samples from the policy, rewards what it said and trains it."""

    lr: float | None = Field(
        default=None,
        gt=0,
        description="Peak learning rate of the policy; None: the model preset's (tiny 3e-4, small 5e-5, gpu and fsdp 1e-5).",
    )
    value_lr: float | None = Field(
        default=None,
        gt=0,
        description="The same of the value adapter, whose head learns ten times as fast; None: the preset's (tiny 1e-3,"
        " small 2e-4, gpu and fsdp 5e-5).",
    )
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="Share of the steps in which the rates rise.")
    decay: Decay = Field(default="linear", description="How the rates fall after that: linear, cosine or none.")
    iterations: int = Field(default=16, ge=1, description="How often answers are sampled and learnt from.")
    prompts_per_iteration: int = Field(default=32, ge=1, description="Prompts that one iteration asks.")
    samples_per_prompt: int = Field(default=4, ge=1, description="Answers sampled to each of them.")
    max_tokens: int = Field(default=128, ge=1, description="Longest sampled answer, if apps allow a longer one.")
    min_temperature: float = Field(
        default=0.3, gt=0, description="Samples are drawn at the app's temperature, but at no lower one than this."
    )
    max_prompts: int = Field(default=2000, ge=1, description="Most prompts of a round; the newest are taken.")
    epochs: int = Field(default=4, ge=1, description="Passes over the answers of an iteration.")
    minibatches: int = Field(default=4, ge=1, description="Optimizer steps of one pass.")
    clip: float = Field(
        default=0.2, gt=0, description="How far a token's probability ratio may move for its advantage."
    )
    value_clip: float = Field(default=0.2, gt=0, description="How far a value may move in one iteration.")
    value_weight: float = Field(default=0.1, gt=0, description="Weight of the value loss beside the policy's.")
    gamma: float = Field(default=1.0, gt=0, le=1, description="What a reward one token later is worth.")
    lam: float = Field(default=0.95, ge=0, le=1, description="GAE's lambda: 1 trusts rewards alone, 0 values alone.")
    whiten: bool = Field(default=True, description="Give an iteration's advantages mean 0 and spread 1.")
    missing_end_penalty: float = Field(
        default=1.0, ge=0, description="What an answer loses that was cut off instead of ended."
    )
    kl_coefficient: float = Field(default=0.05, ge=0, description="Price of a nat of KL to the reference, a token.")
    adaptive_kl: bool = Field(default=False, description="Move that price until an answer's KL is at kl_target.")
    kl_target: float = Field(default=6.0, gt=0, description="KL of an answer, nats, summed over its tokens.")
    kl_horizon: float = Field(default=10_000.0, gt=0, description="Answers in which the price could double.")
    reference_ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of itself that the reference keeps at each iteration while it follows the policy; 0: it stands still.",
    )
    max_approximate_kl: float = Field(
        default=0.02, gt=0, description="An iteration's updates end once the policy has moved further, nats a token."
    )
    max_importance_weight: float = Field(
        default=2.0,
        ge=1,
        description="Most that a token counts which the sampler drew with less chance than the policy.",
    )
    max_answer_ratio: float = Field(
        default=2.0,
        gt=1,
        description="Answers whose mean ratio to what they were drawn by is further from 1 are dropped.",
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="Largest norm of a step's gradient; 0: any.")
    overlap: bool = Field(
        default=True,
        description="Have an engine sample the next answers while the policy learns from the last: they are one iteration old.",
    )

    @property
    def num_asked(self) -> int:
        """Prompts that a round asks, if there are so many."""
        return min(self.max_prompts, self.iterations * self.prompts_per_iteration)


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
