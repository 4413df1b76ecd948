"""The base model in memory, once, with its adapters: device, dtype, attention, memory, and the way from tokens to hidden
states.

Refuses a model whose logits cannot be computed from its last hidden states, as the chunked lm_head does. One thread at a
time. Does not sample, and does not decide what is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from trainer.model.adapters import Adapters
from trainer.model.logprobs import read_scaling
from trainer.model.presets import PRESETS, resolve_preset
from trainer.settings import ModelSection
from trainer.text.batches import Batch, Item, make_batch
from trainer.text.transcript import Transcriber

PROBE_LENGTH = 6


class UnsupportedModel(ValueError):
    """The model computes its logits, or its attention, in a way that this trainer does not know."""


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 by instructions of its own: by AVX2 alone it takes seventy times float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_device(asked: str) -> torch.device:
    """The device asked for, else a GPU if there is one, else the CPU."""
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_dtypes(asked: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the weights, dtype of products): bfloat16 for both on a GPU; on a CPU weights stay float32, since autocast
    over them is faster there than bfloat16 weights."""
    if asked == "auto":
        asked = "bfloat16" if device.type == "cuda" or has_fast_bf16() else "float32"
    compute = torch.bfloat16 if asked == "bfloat16" else torch.float32
    return (compute if device.type == "cuda" else torch.float32), compute


class Backbone:
    """A causal LM, its tokenizer and its adapters.

    `preset` is the resolved one: other parts choose their learning rates by it. `dtype` is what products are computed in.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, settings: ModelSection, seed: int) -> None:
        torch.manual_seed(seed)
        self.settings = settings
        self.tokenizer: Any = tokenizer
        self.device: torch.device = next(model.parameters()).device
        self.dtype = choose_dtypes(settings.dtype, self.device)[1]
        self.num_parameters = sum(p.numel() for p in model.parameters())
        asked = settings.preset
        self.preset = resolve_preset(self.num_parameters, self.device.type) if asked == "auto" else asked
        values = PRESETS[self.preset]
        self.logits_mb = settings.logits_mb or values.logits_mb
        self.token_budget = settings.token_budget or values.token_budget
        config = model.config.get_text_config()
        self.hidden_size = int(config.hidden_size)
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.max_tokens = settings.max_tokens or int(getattr(config, "max_position_embeddings", None) or 4096)
        self.scaling = read_scaling(config)
        turn_ends = find_turn_ends(model, tokenizer)
        self.pad_id = int(turn_ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self.transcriber = Transcriber(tokenizer, turn_ends, self.max_tokens)
        silence_dropout(model)
        rank = settings.lora_rank or values.lora_rank
        self.adapters = Adapters(
            model,
            rank=rank,
            alpha=settings.lora_alpha or 2 * rank,
            target_modules=settings.target_modules or "all-linear",
        )
        self.causal_lm: Any = self.adapters.peft.get_base_model()
        self.lm_head: Any = self.causal_lm.get_output_embeddings()
        self.shares_prompt = settings.share_prompt != "never"

    @classmethod
    def load(cls, base: str | Path, settings: ModelSection, *, seed: int, device: str = "") -> Backbone:
        """Load a Hugging Face directory or hub id, safetensors alone."""
        where = choose_device(device or settings.device)
        weights, _ = choose_dtypes(settings.dtype, where)
        tokenizer = AutoTokenizer.from_pretrained(base)
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=weights, use_safetensors=True, attn_implementation="sdpa"
        )
        return cls(model.to(where), tokenizer, settings, seed)

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in `dtype`, over weights of any."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def make_batch(self, items: Sequence[Item]) -> Batch:
        """Items as a batch on the device; answers share their prompt's row where the model can."""
        return make_batch(items, self.pad_id, self.shares_prompt).to(self.device)

    def hidden(self, batch: Batch) -> Tensor:
        """The last hidden states, (rows, length, width), under the adapter that is active; (float32, or bfloat16 by autocast)."""
        positions = None if batch.attention_mask is None else batch.position_ids
        with self.autocast():
            output = self.causal_lm.base_model(
                input_ids=batch.ids, attention_mask=batch.attention_mask, position_ids=positions, use_cache=False
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def is_sound(self, adapter: str) -> bool:
        """Whether an adapter is finite, and so is what is active now: else no row is to blame for what fails."""
        if not all(torch.isfinite(parameter).all() for parameter in self.adapters.parameters_of(adapter).values()):
            return False
        ids = torch.tensor([[self.pad_id] * 2], device=self.device)
        with torch.no_grad():
            logits = self.causal_lm(input_ids=ids, use_cache=False).logits
        return bool(torch.isfinite(logits).all())

    def prompt_logprobs(self, token_ids: Sequence[int], adapter: str | None) -> list[float]:
        """Log-probabilities of tokens 1..n given those before, computed in the weights' dtype: what a probe expects of the
        engine."""
        ids = torch.tensor([list(token_ids)], device=self.device)
        with self.adapters.inferring(adapter):
            logits = self.causal_lm(input_ids=ids, use_cache=False).logits[0, :-1].float()
        scored: list[float] = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1).tolist()
        return scored


def find_turn_ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end an answer: the generation configuration's, else the tokenizer's eos. Raises UnsupportedModel."""
    generation = getattr(model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    if found is None or found == []:
        raise UnsupportedModel("neither generation_config.json nor the tokenizer says which token ends an answer")
    return [int(found)] if isinstance(found, int) else [int(token) for token in found]


def silence_dropout(model: nn.Module) -> None:
    """No dropout in training: it would add noise to log-probabilities that are compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
