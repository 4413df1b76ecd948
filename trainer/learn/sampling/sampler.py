"""Answers sampled from an adapter, with the ids and log-probabilities they were drawn by: from the engine, or locally.

Log-probabilities are those of the distribution that was drawn from: after temperature and top_p. A sampler that prefers an
engine samples locally while that is away, and says so. Does not choose what is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from trainer.learn.hearing import Hear, hear_part, ignore_share
from trainer.learn.isolation import NotFinite
from trainer.text.pairs import Answer, Pair, Prompt

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.learn.sampling")


class EngineFailed(Exception):
    """An engine is away, or answered with something else than samples; the message says which and what.

    status: what it answered with, 0 if it did not answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Sampled:
    """answer: with its ids, turn end included if it was sampled. logprobs: (ids,), nats."""

    answer: Answer
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class SamplingParameters:
    """How an app has its answers sampled. temperature 0: the likeliest."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class SamplingRequest:
    """n answers to each prompt. adapter: one of the backbone's, None for the base.

    hear: told now and then, by whoever waits, what share of the answers is there; what it raises ends the sampling.
    """

    prompts: Sequence[Prompt]
    adapter: str | None
    n: int
    parameters: SamplingParameters
    seed: int
    hear: Hear = ignore_share


Samples = list[list[Sampled]]
"""The answers to each prompt, in order."""


class Sampler(Protocol):
    """source says where the last samples came from: "engine", or "local" with the reason."""

    source: str

    def sample(self, request: SamplingRequest) -> Samples:
        """Raises UnusableRow for a prompt that cannot be encoded, NotFinite where the adapter gives no probabilities."""
        ...

    def begin(self, request: SamplingRequest) -> Callable[[], Samples]:
        """As `sample`, of the adapter as it stands now, while the caller goes on; what is returned waits for the samples.

        An engine that fails meanwhile is made good locally, by the adapter as it stands when they are waited for.
        """
        ...


def choose_parameters(pairs: Sequence[Pair], *, temperature: float, max_tokens: int) -> SamplingParameters:
    """What most of the answers were sampled with; `temperature` where none says it, and never more than max_tokens.

    A request that says a temperature or a limit and no top_p is sampled from all tokens: that is the engines' default.
    """
    answers = [answer for pair in pairs for answer in (pair.first, pair.second)]
    temperatures = [answer.temperature for answer in answers if answer.temperature is not None]
    limits = [answer.max_tokens for answer in answers if answer.max_tokens]
    said = [each for each in answers if (each.temperature, each.max_tokens, each.top_p) != (None, None, None)]
    return SamplingParameters(
        temperature=_most_common(temperatures, temperature),
        top_p=_most_common([1.0 if each.top_p is None else each.top_p for each in said], 1.0),
        max_tokens=min(max_tokens, _most_common(limits, max_tokens)),
    )


def _most_common(values: Sequence[Any], default: Any) -> Any:
    return max(sorted(set(values)), key=list(values).count) if values else default


def fit_limit(prompt_ids: Sequence[int], max_tokens: int, context: int) -> int:
    """How many tokens an answer may have behind this prompt; at least 1."""
    return max(1, min(max_tokens, context - len(prompt_ids)))


class NarrowCache(DynamicCache):
    """Keys and values in the dtype that attention computes in: autocast would round all of them at every token."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__(config=config)
        self._dtype = dtype

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As the base class says."""
        kept: tuple[Tensor, Tensor] = super().update(
            key_states.to(self._dtype), value_states.to(self._dtype), *args, **kwargs
        )
        return kept


class LocalSampler:
    """Samples with the trainer's own copy of the model, in batches with a key-value cache."""

    def __init__(self, backbone: Backbone, max_batch_tokens: int = 8192) -> None:
        self._backbone = backbone
        self._max_batch_tokens = max_batch_tokens
        self._turn_ends = torch.tensor(list(backbone.transcriber.turn_ends), device=backbone.device)
        self.source = "local"

    def sample(self, request: SamplingRequest) -> Samples:
        """As the protocol says; the same prompts and seed give the same answers."""
        backbone, n, parameters = self._backbone, request.n, request.parameters
        max_tokens = parameters.max_tokens
        encoded = [backbone.transcriber.encode_prompt(prompt) for prompt in request.prompts]
        generator = torch.Generator(backbone.device).manual_seed(request.seed)
        sampled: Samples = [[] for _ in encoded]
        with backbone.adapters.inferring(request.adapter), backbone.autocast():
            for chosen in self._plan([len(ids) for ids in encoded], n, max_tokens):
                limits = [fit_limit(encoded[i], max_tokens, backbone.max_tokens) for i in chosen]
                hear = hear_part(request.hear, sum(map(bool, sampled)) / len(encoded), len(chosen) / len(encoded))
                rows = self._generate([encoded[i] for i in chosen], n, max(limits), parameters, generator, hear)
                for place, i in enumerate(chosen):
                    for ids, logprobs in rows[place * n : (place + 1) * n]:
                        sampled[i].append(self._make(ids[: limits[place]], logprobs[: limits[place]], parameters))
        return sampled

    def begin(self, request: SamplingRequest) -> Callable[[], Samples]:
        """As the protocol says; all is sampled before it returns."""
        sampled = self.sample(request)
        return lambda: sampled

    def _plan(self, lengths: Sequence[int], n: int, max_tokens: int) -> list[list[int]]:
        """Indices of prompts by batch, sorted by length; a batch's padded tokens stay within the budget."""
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            fits = batches and (len(batches[-1]) + 1) * n * (lengths[i] + max_tokens) <= self._max_batch_tokens
            if fits:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        max_tokens: int,
        parameters: SamplingParameters,
        generator: torch.Generator,
        hear: Hear,
    ) -> list[tuple[list[int], list[float]]]:
        """n rows for each prompt, left-padded: token ids, turn end included, and their log-probabilities."""
        backbone = self._backbone
        step, mask = self._pad_left(prompts)
        output = self._forward(step, mask, NarrowCache(backbone.causal_lm.config, backbone.dtype))
        cache, mask = output.past_key_values, mask.repeat_interleave(n, 0)
        if n > 1:
            cache.batch_repeat_interleave(n)
        logits = output.logits[:, -1].float().repeat_interleave(n, 0)
        rows: list[tuple[list[int], list[float]]] = [([], []) for _ in range(len(mask))]
        alive = torch.arange(len(mask), device=backbone.device)  # the row that each line of the cache belongs to
        for position in range(max_tokens):
            hear(position / max_tokens)
            chosen, logprobs = draw_tokens(logits, parameters.temperature, parameters.top_p, generator)
            for row, token, logprob in zip(alive.tolist(), chosen.tolist(), logprobs.tolist(), strict=True):
                rows[row][0].append(token)
                rows[row][1].append(logprob)
            goes_on = ~torch.isin(chosen, self._turn_ends)
            if position == max_tokens - 1 or not bool(goes_on.any()):
                break
            if not bool(goes_on.all()):  # finished rows leave the cache
                kept = goes_on.nonzero().squeeze(1)
                cache.batch_select_indices(kept)
                alive, mask, chosen = alive[kept], mask[kept], chosen[kept]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            output = self._forward(chosen[:, None], mask, cache)
            cache, logits = output.past_key_values, output.logits[:, -1].float()
        return rows

    def _pad_left(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(ids, mask), both (prompts, longest)."""
        length = max(map(len, prompts))
        pad = int(self._turn_ends[0])  # hidden by the mask
        ids = [[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self._backbone.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any) -> Any:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self._backbone.causal_lm(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip

    def _make(self, ids: list[int], logprobs: list[float], parameters: SamplingParameters) -> Sampled:
        is_finished = ids[-1] in self._backbone.transcriber.turn_ends
        said = ids[:-1] if is_finished else ids
        answer = Answer(
            text=self._backbone.transcriber.decode(said),
            ids=tuple(ids),
            finish_reason="stop" if is_finished else "length",
            temperature=parameters.temperature,
            max_tokens=parameters.max_tokens,
            top_p=parameters.top_p,
        )
        return Sampled(answer, tuple(logprobs))


def draw_tokens(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token for each row of logits (rows, vocabulary) and its log-probability after temperature and top_p, both (rows,).

    Raises NotFinite where a row holds no distribution.
    """
    if not bool(torch.isfinite(logits.logsumexp(-1)).all()):
        raise NotFinite("the policy gives no probabilities for the next token")
    if temperature <= 0:
        best = torch.log_softmax(logits, -1).max(-1)
        return best.indices, best.values
    logprobs = torch.log_softmax(logits / temperature, -1)
    if top_p < 1:
        ordered, places = logprobs.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass above each token: the token that crosses top_p is kept
        dropped = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, places, before >= top_p)
        logprobs = torch.log_softmax(logprobs.masked_fill(dropped, -torch.inf), -1)
    chosen = torch.multinomial(logprobs.exp(), 1, generator=generator)
    return chosen.squeeze(1), logprobs.gather(1, chosen).squeeze(1)


class PreferredSampler:
    """Samples with the engine; while that is away, locally, and says so. It is asked again after `retry_after_s`."""

    def __init__(
        self, engine: Sampler, local: Sampler, retry_after_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._local, self._retry_after_s, self._now = engine, local, retry_after_s, now
        self._failed_at, self._failure = 0.0, ""  # when and why the engine failed last
        self.source = "engine"

    def sample(self, request: SamplingRequest) -> Samples:
        """As the protocol says."""
        return self.begin(request)()

    def begin(self, request: SamplingRequest) -> Callable[[], Samples]:
        """As the protocol says. Without the engine all is sampled before it returns."""

        def sample_here() -> Samples:
            self.source = f"local: {self._failure}"
            return self._local.sample(request)

        def finish() -> Samples:
            try:
                sampled = wait()
            except EngineFailed as error:
                self._note(error)
                return sample_here()
            self.source, self._failure = "engine", ""
            return sampled

        if not self._failure or self._now() - self._failed_at >= self._retry_after_s:
            try:
                wait = self._engine.begin(request)
                return finish
            except EngineFailed as error:
                self._note(error)
        sampled_here = sample_here()
        return lambda: sampled_here

    def _note(self, error: EngineFailed) -> None:
        self._failed_at, self._failure = self._now(), str(error)
        log.warning("the trainer samples itself: %s", error)
