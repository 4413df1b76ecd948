"""Converts SmolLM2-135M-Instruct from GGUF to a directory that transformers, PEFT and vLLM load.

Writes bf16 safetensors, tokenizer with chat template and generation config. Fetches nothing: `python -m
prefloop.smollm` does, starts this, and makes the directory appear whole. Needs the package `gguf`.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

TURN_END = "<|im_end|>"
PAD = "<|endoftext|>"


class ConversionFailed(ValueError):
    """The file is not the model that was expected; the message says what differs."""


def convert(gguf: Path, out: Path, say: Callable[[str], None] = print) -> Path:
    """Convert the model in `gguf` into the directory `out`, which may not be whole if this fails. Returns `out`.

    Weights are read as float32 and rounded once to bfloat16. Raises ConversionFailed for a model without chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    say("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise ConversionFailed(f"{gguf} holds no chat template: it is no instruct model")
    turn_end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, PAD))
    if len(tokenizer(f"{TURN_END}{PAD}", add_special_tokens=False)["input_ids"]) != 2:
        raise ConversionFailed(f"the tokenizer in {gguf} splits {TURN_END}")
    tokenizer.eos_token, tokenizer.pad_token = TURN_END, PAD
    say("reading the weights (135 million)")
    read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses a model that was read from a quantized file, so its weights move into a plain one.
    left_out = ("quantization_config", "_model_name_or_path")
    described = {key: value for key, value in read.config.to_dict().items() if key not in left_out}
    config = LlamaConfig(**described | {"eos_token_id": turn_end, "pad_token_id": pad, "dtype": torch.bfloat16})
    tokenizer.model_max_length = config.max_position_embeddings
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id, eos_token_id=[turn_end], pad_token_id=pad
    )
    say("writing bf16 safetensors")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Convert; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.smollm", description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True, help="the model's file")
    parser.add_argument("--out", type=Path, required=True, help="the directory to make")
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the file
    try:
        convert(options.gguf, options.out)
    except (ConversionFailed, OSError, ImportError) as error:
        print(f"the model cannot be converted: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
