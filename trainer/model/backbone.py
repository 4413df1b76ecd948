"""The base model in memory, once, with its adapters: device, dtype, attention, memory, and the way from tokens to hidden
states.

Refuses a model whose logits cannot be computed from its last hidden states, as the chunked lm_head does. One thread at a
time. Does not sample, and does not decide what is learnt.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainer.model.adapters import Adapters
from trainer.model.frozen_linear import hold_in_bfloat16
from trainer.model.lm_head import read_scaling
from trainer.model.loading import load_causal_lm
from trainer.model.presets import PRESETS, budget_beside_engine, fits_one_device, plan_memory, resolve_preset
from trainer.model.sharding import count_processes, shard_base, take_least
from trainer.sections.model import ModelSection
from trainer.text.batches import Batch, Item, locate_answers, make_batch
from trainer.text.transcript import Transcriber

log = logging.getLogger("trainer.model")

TAKEN_PER_KEPT = (
    2.5  # memory taken for every byte that the backward pass keeps: its own products, and what malloc wastes
)

PROBE_TOKENS = 23  # of the forwards that find out what a model does


class UnsupportedModel(ValueError):
    """The model computes its logits, or its attention, in a way that this trainer does not know."""


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 by instructions of its own: by AVX2 alone it takes seventy times float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_device(asked: str) -> torch.device:
    """The device asked for, else a GPU if there is one, else the CPU."""
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_dtypes(asked: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the weights, dtype of products): bfloat16 for both on a GPU; on a CPU weights are loaded in float32, since
    what layers add up is slower there in bfloat16 (frozen_linear holds those of products in bfloat16 where that is exact)."""
    if asked == "auto":
        asked = "bfloat16" if device.type == "cuda" or has_fast_bf16() else "float32"
    compute = torch.bfloat16 if asked == "bfloat16" else torch.float32
    return (compute if device.type == "cuda" else torch.float32), compute


class Backbone:
    """A causal LM, its tokenizer and its adapters.

    `preset` is the resolved one: other parts choose their learning rates by it. `dtype` is what products are computed in.
    In a torch.distributed run every process makes one alike; by the preset fsdp each holds a share of the base, and all must
    take part in every forward.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        settings: ModelSection,
        seed: int,
        device: torch.device | None = None,
        engine_share: float = 0.0,
    ) -> None:
        torch.manual_seed(seed)
        self.settings = settings
        self.tokenizer: Any = tokenizer
        self.device: torch.device = device or next(model.parameters()).device
        self.dtype = choose_dtypes(settings.dtype, self.device)[1]
        self.num_parameters = sum(p.numel() for p in model.parameters())
        asked = settings.preset
        num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        fits = bool(take_least(fits_one_device(num_bytes, count_device_bytes(self.device)), self.device))
        resolved = resolve_preset(self.num_parameters, self.device.type, count_processes(), fits)
        self.preset = resolved if asked == "auto" else asked
        values = PRESETS[self.preset]
        self.logits_mb = settings.logits_mb or values.logits_mb
        config = model.config.get_text_config()
        self.hidden_size = int(config.hidden_size)
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.max_tokens = settings.max_tokens or int(getattr(config, "max_position_embeddings", None) or 4096)
        self.scaling = read_scaling(config)
        turn_ends = find_turn_ends(model, tokenizer)
        self.pad_id = int(turn_ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self.transcriber = Transcriber(tokenizer, turn_ends, self.max_tokens)
        silence_dropout(model)
        if self.dtype == torch.bfloat16 and self.preset != "fsdp":  # whose shards are of one dtype
            hold_in_bfloat16(model)
        rank = settings.lora_rank or values.lora_rank
        self.adapters = Adapters(
            model,
            rank=rank,
            alpha=settings.lora_alpha or 2 * rank,
            target_modules=settings.target_modules or "all-linear",
        )
        self.causal_lm: Any = self.adapters.peft.get_base_model()
        self.lm_head: Any = self.causal_lm.get_output_embeddings()
        if self.preset == "fsdp" and count_processes() > 1:
            shard_base(self.causal_lm, self.device)
        else:
            self.causal_lm.to(self.device)
        refuse_other_logits(self)
        self.free_tokens = sys.maxsize
        self._checkpointing = prepare_checkpointing(self.causal_lm)
        self.shares_prompt = settings.share_prompt == "auto" and can_share_prompt(self)
        memory_mb = values.memory_mb if settings.memory_mb is None else settings.memory_mb
        if settings.memory_mb is None and self.device.type == "cuda":
            memory_mb = budget_beside_engine(count_device_bytes(self.device) >> 20, engine_share)
        plan = plan_memory(
            settings.token_budget or values.token_budget,
            int(TAKEN_PER_KEPT * count_kept_bytes(self)) // PROBE_TOKENS,
            find_free_mb(self, memory_mb) if memory_mb and self._checkpointing else None,
        )
        self.token_budget = take_least(plan.token_budget, self.device)
        self.free_tokens = take_least(plan.free_tokens, self.device)

    @classmethod
    def load(
        cls, base: str | Path, settings: ModelSection, *, seed: int, device: str = "", engine_share: float = 0.0
    ) -> Backbone:
        """Load a Hugging Face directory or hub id, safetensors alone. engine_share: of a GPU's memory, which an engine has."""
        where = choose_device(device or settings.device)
        weights, _ = choose_dtypes(settings.dtype, where)
        tokenizer = AutoTokenizer.from_pretrained(base)
        return cls(load_causal_lm(base, weights), tokenizer, settings, seed, where, engine_share)

    @property
    def held_share(self) -> float:
        """Share of the base's weights that this process holds between forwards: below 1 where they are split."""
        base = [p for name, p in self.causal_lm.named_parameters() if "lora_" not in name]
        held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in base)
        return float(held / sum(p.numel() for p in base))

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in `dtype`, over weights of any."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def make_batch(self, items: Sequence[Item]) -> Batch:
        """Items as a batch on the device; answers share their prompt's row where the model can."""
        return make_batch(items, self.pad_id, self.shares_prompt, self.max_tokens).to(self.device)

    def hidden(self, batch: Batch) -> Tensor:
        """The last hidden states, (rows, length, width), under the adapter that is active; (float32, or bfloat16 by autocast)."""
        positions = None if batch.attention_mask is None else batch.position_ids
        is_checkpointed = torch.is_grad_enabled() and batch.ids.numel() > self.free_tokens
        for layer in self._checkpointing:
            layer.gradient_checkpointing = is_checkpointed
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


def count_device_bytes(device: torch.device) -> int:
    """Memory that one process may take on a device: a GPU's, or its part of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total) // count_processes()


def find_turn_ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end an answer: the generation configuration's, else the tokenizer's eos. Raises UnsupportedModel."""
    generation = getattr(model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    if found is None or found == []:
        raise UnsupportedModel("neither generation_config.json nor the tokenizer says which token ends an answer")
    return [int(found)] if isinstance(found, int) else [int(token) for token in found]


def refuse_other_logits(backbone: Backbone) -> None:
    """Raises UnsupportedModel if lm_head and scaling over the last hidden states do not give the model's logits."""
    ids = torch.arange(PROBE_TOKENS, device=backbone.device)[None] % backbone.vocab_size
    with torch.no_grad():
        expected = backbone.causal_lm(input_ids=ids, use_cache=False).logits.float()
        hidden = backbone.causal_lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = backbone.scaling.apply(backbone.lm_head(hidden).float())
    if not is_close(logits, expected):
        raise UnsupportedModel(f"{type(backbone.causal_lm).__name__} does more to its logits than this trainer knows")


def is_close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ by rounding alone, bfloat16's included."""
    tolerance = 0.03 if one.dtype == torch.bfloat16 or other.dtype == torch.bfloat16 else 0.01
    return bool((one.float() - other.float()).norm() <= tolerance * other.float().norm())


def can_share_prompt(backbone: Backbone) -> bool:
    """Whether answers in one row stay apart under this model's attention: tried, since a mask may be ignored."""
    config = backbone.causal_lm.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and window < backbone.max_tokens:  # a mask of our own takes the place of the window's
        return False
    ids = [int(i) % backbone.vocab_size for i in range(7, 7 + PROBE_TOKENS)]
    items: list[Item] = [(tuple(ids[:4]), [tuple(ids[4:9]), tuple(ids[9:])])]
    states = []
    with torch.no_grad():
        for share in (True, False):
            batch = make_batch(items, backbone.pad_id, share).to(backbone.device)
            positions = batch.position_ids if share else None
            try:
                output = backbone.causal_lm.base_model(
                    input_ids=batch.ids, attention_mask=batch.attention_mask, position_ids=positions, use_cache=False
                )
            except (
                ValueError,
                TypeError,
                RuntimeError,
                IndexError,
            ) as error:  # what models say of a mask they do not take
                log.info("answers do not share their prompts' rows: %s", error)
                return False
            rows, _, predicted, _ = locate_answers(batch)
            states.append(output.last_hidden_state[rows, predicted])
    return is_close(states[0], states[1])


def prepare_checkpointing(model: Any) -> list[Any]:
    """The layers whose activations can be computed again; none if the model does not offer it."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        return []
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    for layer in layers:
        layer.gradient_checkpointing = False
    return layers


def count_kept_bytes(backbone: Backbone) -> int:
    """What the backward pass of PROBE_TOKENS tokens under an adapter keeps, without weights: measured by a forward."""
    kept: dict[int, int] = {}
    whole = [p for p in backbone.causal_lm.parameters() if not isinstance(p, DTensor)]
    weights = {p.untyped_storage().data_ptr() for p in whole}
    matrices = [p.shape for p in backbone.causal_lm.parameters() if p.dim() == 2]
    shapes = {*matrices, *((width, height) for height, width in matrices)}  # of their bfloat16 copies, too

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape not in shapes:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = tuple(i % backbone.vocab_size for i in range(PROBE_TOKENS))
    with backbone.adapters.training(Adapters.NAMES[0]), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        hidden = backbone.hidden(backbone.make_batch([(ids[:1], [ids[1:]])]))
        del hidden
    return sum(kept.values())


def find_free_mb(backbone: Backbone, memory_mb: int) -> int:
    """MiB of a limit that are left for activations, when model, three adapters' gradients and moments, and logits are held."""
    on_gpu = backbone.device.type == "cuda"
    held = torch.cuda.memory_allocated(backbone.device) if on_gpu else psutil.Process().memory_info().rss
    trained = sum(p.numel() * p.element_size() for p in backbone.adapters.parameters_of("policy").values())
    return memory_mb - backbone.logits_mb - ((held + 3 * 3 * trained) >> 20)  # reward, policy, value


def silence_dropout(model: nn.Module) -> None:
    """No dropout in training: it would add noise to log-probabilities that are compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
