"""How DPO and SFT rounds train, as settings."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, Field, model_validator

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
