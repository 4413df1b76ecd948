"""Loads causal LMs with the attention that they compute. Does not say where they go, nor what is trained of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def load_causal_lm(base: str | Path, dtype: torch.dtype) -> Any:
    """A Hugging Face directory or hub id, safetensors alone."""
    attention = choose_attention(AutoConfig.from_pretrained(base))
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True, attn_implementation=attention)


def choose_attention(config: Any) -> str:
    """Torch's own, but for models that cap attention's logits (Gemma 2): it has no cap, and leaves it out without a word."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else "sdpa"
