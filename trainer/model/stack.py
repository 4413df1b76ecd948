"""One base model in memory with the adapters `policy`, `stable` and `reward`.

Promises that a forward under one adapter leaves no trace on another: exactly the adapter in training takes gradients.
One thread at a time. Does not cover full-weight training.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from trainer.model.logprobs import Batch, answer_logprobs, collate
from trainer.text.transcript import UnusableRow, flatten_messages

ADAPTERS = ("policy", "stable", "reward")
LORA_RANK = 16
LORA_ALPHA = 32
Messages = Sequence[dict[str, Any]]


class AdapterMismatch(Exception):
    """An adapter's tensors do not fit the base model: names, shapes or values."""


class PolicyStack:
    """The base model, its tokenizer and its adapters."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        torch.manual_seed(seed)
        config = LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.peft = get_peft_model(model, config, adapter_name=ADAPTERS[0])
        for name in ADAPTERS[1:]:
            self.peft.add_adapter(name, deepcopy(config))
        self.tokenizer = tokenizer
        self.causal_lm: Any = self.peft.get_base_model()
        self.device = next(model.parameters()).device
        self.max_length = int(getattr(model.config, "max_position_embeddings", 4096))
        self.hidden_size = int(model.config.hidden_size)
        self._layers: list[Any] = [module for module in self.peft.modules() if isinstance(module, BaseTunerLayer)]
        self._activate(None)

    @classmethod
    def load(cls, base_dir: str | Path, *, seed: int, device: str = "") -> "PolicyStack":
        """Loads a Hugging Face directory or hub id in float32; `device` empty: CUDA if there is one, else CPU."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = AutoTokenizer.from_pretrained(base_dir)
        model: Any = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, use_safetensors=True)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(model.to(device), tokenizer, seed)

    # Adapters

    def parameters_of(self, adapter: str) -> dict[str, nn.Parameter]:
        """The adapter's LoRA matrices by name."""
        return {name: p for name, p in self.peft.named_parameters() if f".{adapter}." in name and "lora_" in name}

    def reset_adapter(self, adapter: str, like: str | None = None) -> None:
        """Copies another adapter's weights, or starts anew with B = 0, which answers exactly as the base does."""
        if like is None:
            for layer in self._layers:
                layer.reset_lora_parameters(adapter, True)
        else:
            source = self.parameters_of(like)
            with torch.no_grad():
                for name, parameter in self.parameters_of(adapter).items():
                    parameter.copy_(source[name.replace(f".{adapter}.", f".{like}.")])
        self._activate(None)

    def save_adapter(self, adapter: str, out_dir: str | Path) -> None:
        """Writes adapter_model.safetensors and adapter_config.json, as PEFT and vLLM read them."""
        out = Path(out_dir)
        out.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(self.peft, adapter_name=adapter)
        save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, out / "adapter_model.safetensors")
        config = self.peft.peft_config[adapter].to_dict()
        config.update(inference_mode=True, target_modules=sorted(config["target_modules"]))
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        (out / "adapter_config.json").write_text(json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n")

    def load_adapter(self, adapter: str, path: str | Path) -> None:
        """Overwrites an adapter from a directory. Raises AdapterMismatch before anything was changed."""
        state = load_file(Path(path) / "adapter_model.safetensors")
        expected = get_peft_model_state_dict(self.peft, adapter_name=adapter)
        if state.keys() != expected.keys():
            raise AdapterMismatch(f"unknown or missing tensors: {sorted(state.keys() ^ expected.keys())[:3]}")
        for name, tensor in state.items():
            if tensor.shape != expected[name].shape or not torch.isfinite(tensor).all():
                raise AdapterMismatch(f"{name}: wrong shape or values that are not finite")
        set_peft_model_state_dict(self.peft, state, adapter_name=adapter)
        self._activate(None)

    def _activate(self, adapter: str | None, trainable: bool = False) -> None:
        """Switches adapters; None is the bare base. PEFT's own switches leave requires_grad behind, so it is set here."""
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        for name, parameter in self.peft.named_parameters():
            parameter.requires_grad_(trainable and adapter is not None and f".{adapter}." in name and "lora_" in name)
        self.peft.train(trainable)

    @contextmanager
    def inferring(self, adapter: str | None) -> Iterator[None]:
        """Evaluates under an adapter (None: the base), without gradients."""
        self._activate(adapter)
        with torch.no_grad():
            yield

    @contextmanager
    def training(self, adapter: str) -> Iterator[list[nn.Parameter]]:
        """Trains one adapter; yields its parameters, the only ones that take gradients."""
        self._activate(adapter, trainable=True)
        parameters = self.parameters_of(adapter)
        assert parameters and {n for n, p in self.peft.named_parameters() if p.requires_grad} == parameters.keys()
        try:
            yield list(parameters.values())
        finally:
            self._activate(None)

    # Text and tokens

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Token ids of a chat, up to where the answer begins; the engine sees the same ids.

        Raises UnusableRow for what is no text, and whatever template and tokenizer raise.
        """
        chat = flatten_messages(messages)
        text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return self._tokenize(str(text))

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encode(self, messages: Messages, answer: str, *, cut: bool = False) -> tuple[list[int], int]:
        """(token ids of prompt, answer and eos; number of prompt tokens).

        Raises what `encode_prompt` raises, and UnusableRow for what is longer than the policy reads; with `cut`, which is
        for sampled answers, an answer is cut to what fits.
        """
        prompt_ids = self.encode_prompt(messages)
        answer_ids = self._tokenize(answer)
        if cut:
            answer_ids = answer_ids[: max(0, self.max_length - len(prompt_ids) - 1)]
        ids = [*prompt_ids, *answer_ids, self.tokenizer.eos_token_id]
        if len(ids) > self.max_length:
            raise UnusableRow(f"prompt and answer are {len(ids):,} tokens, the policy reads {self.max_length:,}")
        return ids, len(prompt_ids)

    def is_sound(self, adapter: str) -> bool:
        """Whether an adapter is finite, and so is what is active now: else no row is to blame for what fails."""
        if not all(torch.isfinite(parameter).all() for parameter in self.parameters_of(adapter).values()):
            return False
        ids = torch.tensor([[self.tokenizer.eos_token_id] * 2], device=self.device)
        with torch.no_grad():
            logits = self.causal_lm(input_ids=ids, use_cache=False).logits
        return bool(torch.isfinite(logits).all())

    def collate(self, rows: Sequence[tuple[Sequence[int], int]]) -> Batch:
        return collate(rows, self.tokenizer.pad_token_id).to(self.device)

    def answer_logprobs(
        self,
        rows: Sequence[tuple[Sequence[int], int]],
        adapter: str | None,
        batch_size: int = 64,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities and token counts of encoded answers, both (rows,), on the CPU, without gradients."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))  # rows of like length share a batch
        sums, counts = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.long)
        with self.inferring(adapter):
            for start in range(0, len(rows), batch_size):
                chosen = order[start : start + batch_size]
                total, number = answer_logprobs(self.causal_lm, self.collate([rows[i] for i in chosen]), temperature)
                sums[chosen], counts[chosen] = total.cpu(), number.cpu()
        return sums, counts

    def prompt_logprobs(self, token_ids: Sequence[int], adapter: str | None) -> list[float]:
        """Log-probabilities of tokens 1..n given those before, float32: what a probe expects of the engine."""
        ids = torch.tensor([list(token_ids)], device=self.device)
        with self.inferring(adapter):
            logits = self.causal_lm(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1).tolist()

    def generate(
        self,
        prompts: Sequence[Messages],
        adapter: str | None,
        max_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int = 64,
    ) -> list[str]:
        """One sampled answer per prompt (temperature 0: the likeliest); the same seed gives the same answers."""
        generator = torch.Generator(self.device).manual_seed(seed)
        encoded = [self.encode_prompt(messages) for messages in prompts]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        answers = [""] * len(encoded)
        with self.inferring(adapter):
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                sampled = self._sample([encoded[i] for i in chosen], max_tokens, temperature, generator)
                for i, ids in zip(chosen, sampled, strict=True):
                    answers[i] = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return answers

    def _sample(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float, generator: torch.Generator
    ) -> list[list[int]]:
        """Token ids up to eos per prompt. Prompts are padded on the left: all answers grow at the same column."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        width = max(len(ids) for ids in prompts)
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        cache, step, columns = None, ids, []
        for _ in range(max_tokens):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
            output = self.causal_lm(
                input_ids=step, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            cache, logits = output.past_key_values, output.logits[:, -1].float()
            if temperature > 0:
                step = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)
            else:
                step = logits.argmax(-1, keepdim=True)
            step = torch.where(done[:, None], torch.full_like(step, pad), step)
            columns.append(step)
            done = done | (step[:, 0] == eos)
            mask = torch.cat([mask, torch.ones_like(step)], 1)
            if bool(done.all()):
                break
        rows = torch.cat(columns, 1).tolist()
        return [row[: row.index(eos)] if eos in row else row for row in rows]
