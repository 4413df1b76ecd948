"""Makes a checkpoint of a full model: `python -m trainer.full_model MODEL_DIR --checkpoints DIR --told-from BASE_DIR`.

Measures the probe (the model's own likeliest words, so that every token is among the engine's likeliest), copies what
serving needs, publishes, uploads if `checkpoints_url` is set, and registers if a gateway is given. Does not train.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from feedback.errors import ManifestError, SigningKeyError, StoreUnavailable
from feedback.manifest import Probe
from feedback.settings import SharedSettings, load_settings
from feedback.signing import SigningKey, read_signing_key
from trainer.model.loading import load_causal_lm
from trainer.run.publish.checkpoints import Draft, Published, digest_base, next_number, publish_checkpoint
from trainer.run.publish.registry import Gateway, GatewayRefused, GatewayUnavailable

log = logging.getLogger("trainer.full_model")

PROMPT = "Tell me what you can do, in a few words."
NUM_PROBED = 24
SERVED = (".safetensors", ".json", ".jinja", ".txt", ".model")  # weights, configuration, tokenizer
TIMEOUT_S = 60.0


def measure_probe(model_dir: Path, told_from: Path | None) -> Probe:
    """What the model says of its own greedy answer, and what `told_from` says of the same tokens; float32."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    text = PROMPT
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": PROMPT}]
        text = str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    prompt_ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    model = load_causal_lm(model_dir, torch.float32)
    ids = _continue(model, prompt_ids, NUM_PROBED)
    logprobs = score_tokens(model, ids)
    del model
    base_logprobs = score_tokens(load_causal_lm(told_from, torch.float32), ids) if told_from is not None else []
    return Probe(prompt_token_ids=ids, logprobs=logprobs, base_logprobs=base_logprobs)


def score_tokens(model: Any, ids: list[int]) -> list[float]:
    """Log-probabilities of tokens 1..n given those before."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    scored: list[float] = torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None]).squeeze(1).tolist()
    return scored


def publish_full_model(
    root: Path,
    model_dir: Path,
    *,
    parent: str | None,
    told_from: Path | None,
    number: int,
    now: float,
    key: SigningKey | None = None,
) -> Published:
    """Publish a copy of the model's directory as checkpoint `number`."""

    def write(directory: Path) -> None:
        for path in sorted(model_dir.iterdir()):
            if path.is_file() and path.suffix in SERVED and path.name != "manifest.json":
                shutil.copyfile(path, directory / path.name)

    draft = Draft(
        number=number,
        parent=parent,
        base_digest=digest_base(str(told_from or model_dir)),
        rank=0,
        probe=measure_probe(model_dir, told_from),
        kind="full",
    )
    return publish_checkpoint(root, draft, write, now, key)


def _continue(model: Any, prompt_ids: list[int], num: int) -> list[int]:
    """The prompt and the likeliest `num` tokens after it, whatever they are."""
    ids = list(prompt_ids)
    with torch.no_grad():
        for _ in range(num):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


def main(arguments: list[str] | None = None) -> int:
    """Publish, and register where that is asked for. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Make a checkpoint of a full model.")
    parser.add_argument("model_dir", type=Path, help="a Hugging Face directory with safetensors")
    parser.add_argument("--checkpoints", type=Path, required=True, help="where checkpoints are published")
    parser.add_argument("--told-from", type=Path, help="the model served before: its answers must differ")
    parser.add_argument("--parent", help="the id of the checkpoint to roll back to")
    parser.add_argument("--gateway", default="", help="register with the gateway at this URL")
    parser.add_argument("--key-file", type=Path, default=Path("state/secrets/admin_key"), help="an operator's key")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = load_settings(SharedSettings)
    try:
        store, key = settings.open_store(), read_signing_key(settings.signing_key_file)
    except (StoreUnavailable, SigningKeyError) as error:
        log.error("%s", error)
        return 1
    gateway = Gateway(options.gateway, options.key_file, TIMEOUT_S) if options.gateway else None
    try:
        taken = [known.number for known in gateway.list_checkpoints()] if gateway is not None else []
        taken += store.list_numbers() if store is not None else []
        number = next_number(options.checkpoints, taken)
        published = publish_full_model(
            options.checkpoints, options.model_dir, parent=options.parent, told_from=options.told_from, number=number,
            now=time.time(), key=key,
        )  # fmt: skip
        if store is not None:
            store.put(published.path, key)
        if gateway is not None:
            path = published.path
            status = gateway.register(path) if store is None else gateway.register_stored(path.name)
            log.info("the gateway has it as %s", status)
    except (GatewayUnavailable, GatewayRefused, StoreUnavailable, ManifestError) as error:
        log.error("%s", error)
        return 1
    print(published.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
