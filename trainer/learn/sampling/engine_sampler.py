"""Samples from the serving engines, at low priority and no more at a time than people who wait allow.

The adapter as it stands is loaded under a new name, asked in the background, and unloaded when its samples are in, whatever
happens; what a killed trainer left is unloaded first. Falls back on nothing: PreferredSampler does.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainer.learn.sampling.engine_adapters import EngineAdapters
from trainer.learn.sampling.engine_client import Engine
from trainer.learn.sampling.engine_fetch import Choice, Fetch
from trainer.learn.sampling.sampler import (
    EngineFailed,
    Sampled,
    Samples,
    SamplingParameters,
    SamplingRequest,
    fit_limit,
)
from trainer.math.seeds import derive_seed
from trainer.sections.judging import SamplingSection
from trainer.text.pairs import Answer

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.learn.engine_sampler")

TIDY_TIMEOUT_S = 5.0


class Pacing(Protocol):
    """How many samples may be under way; told when sampling begins and ends, so that it knows what is idle time."""

    def begin(self) -> None: ...

    def choose_limit(self) -> int: ...

    def end(self) -> None: ...


class EngineSampler:
    """Samples from `section.engines` in turn. directory: where adapters are written, and the engines read them."""

    def __init__(
        self,
        backbone: Backbone,
        section: SamplingSection,
        directory: Path,
        pacing: Pacing,
        *,
        number: Callable[[], int] = time.time_ns,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backbone, self._section, self._pacing, self._now = backbone, section, pacing, now
        self.engines = [Engine(url) for url in section.engines]
        self._adapters = EngineAdapters(backbone, self.engines, directory, number)
        self._fetches: list[Fetch] = []
        self._tidied_at = -float("inf")
        self.source = "engine"

    def sample(self, request: SamplingRequest) -> Samples:
        """As the protocol says. Raises EngineFailed if any engine fails."""
        return self.begin(request)()

    def begin(self, request: SamplingRequest) -> Callable[[], Samples]:
        """As the protocol says. Raises EngineFailed, and so does what is returned, if any engine fails."""
        encoded = [self._backbone.transcriber.encode_prompt(prompt) for prompt in request.prompts]
        name, parameters = self._adapters.push(request.adapter), request.parameters
        bodies = [self._make_body(name, ids, parameters, derive_seed(request.seed, i)) for i, ids in enumerate(encoded)]
        self._pacing.begin()

        def end() -> None:
            self._pacing.end()
            self._adapters.drop(name)

        fetch = Fetch(
            self.engines,
            bodies,
            request.n,
            num_threads=self._section.max_in_flight,
            timeout_s=self._section.timeout_s,
            choose_limit=self._pacing.choose_limit,
            look_every_s=self._section.pace_every_s,
            on_end=end,
        )
        self._fetches = [*[each for each in self._fetches if each.is_running], fetch]
        return lambda: [[self._read(choice, parameters) for choice in choices] for choices in fetch.wait(request.hear)]

    def tidy(self) -> None:
        """Give up what is under way, and unload what nobody needs; where an engine is away, again after a while.

        For times when no samples are waited for. Costs nothing while there is nothing to do.
        """
        for fetch in self._fetches:
            fetch.give_up()
        self._fetches = [each for each in self._fetches if each.is_running]
        if self._adapters.is_clean or self._now() - self._tidied_at < self._section.retry_after_s:
            return
        self._tidied_at = self._now()
        try:
            self._adapters.clear(TIDY_TIMEOUT_S)
        except EngineFailed as error:
            log.warning("what is left on the engine is unloaded later: %s", error)

    def _make_body(self, name: str, ids: Sequence[int], parameters: SamplingParameters, seed: int) -> dict[str, Any]:
        transcriber = self._backbone.transcriber
        return {
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
            "model": name,
            "prompt": list(ids),
            "seed": seed,
            "max_tokens": fit_limit(ids, parameters.max_tokens, self._backbone.max_tokens),
            "stop_token_ids": list(transcriber.turn_ends),
            "logprobs": 1,
            "return_token_ids": True,
            "priority": self._section.priority,
        }

    def _read(self, choice: Choice, parameters: SamplingParameters) -> Sampled:
        """One answer. Raises EngineFailed if it is none with ids and log-probabilities."""
        transcriber = self._backbone.transcriber
        try:
            ids = tuple(int(token) for token in choice["token_ids"])
            logprobs = tuple(float(logprob) for logprob in choice["logprobs"]["token_logprobs"])
            if not ids or len(ids) != len(logprobs):
                raise ValueError(f"{len(ids)} ids with {len(logprobs)} log-probabilities")
            if min(ids) < 0 or max(ids) >= self._backbone.vocab_size:
                raise ValueError("token ids of another vocabulary")
            if not all(map(math.isfinite, logprobs)):
                raise ValueError("a log-probability is not finite")
            is_finished = choice["finish_reason"] == "stop"
            if is_finished and ids[-1] not in transcriber.turn_ends:
                raise ValueError("an answer that has stopped has no turn end")
            text = transcriber.decode(ids[:-1] if is_finished else ids)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineFailed(f"an engine gave no samples with token ids and log-probabilities: {error!r}") from error
        answer = Answer(
            text=text,
            ids=ids,
            finish_reason="stop" if is_finished else str(choice["finish_reason"]),
            temperature=parameters.temperature,
            max_tokens=parameters.max_tokens,
            top_p=parameters.top_p,
        )
        return Sampled(answer, logprobs)
