"""Samples from the serving engine: the adapter is loaded under a new name, asked at low priority, and unloaded after.

Speaks vLLM's HTTP: load_lora_adapter, completions by token ids, unload_lora_adapter. What a killed trainer left behind is
unloaded first. The engine must see the trainer's files, and is never asked for the bare base (vLLM on CPU
answers wrong where a batch mixes it with adapters): that is an adapter whose B is zero.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from trainer.learn.sampling import EngineFailed, Sampled, SamplingParameters, fit_limit
from trainer.sections.judging import SamplingSection
from trainer.text.pairs import Answer, Prompt

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.learn.engine_sampler")

PREFIX = "t-"  # of the adapters' names: whatever is called so is the trainer's
TENSORS = "adapter_model.safetensors"
LOAD_TIMEOUT_S = 60.0


class EngineSampler:
    """Samples from `section.engines` in turn. directory: where adapters are written, and the engines read them."""

    def __init__(
        self,
        backbone: Backbone,
        section: SamplingSection,
        directory: Path,
        number: Callable[[], int] = time.time_ns,
    ) -> None:
        self._backbone, self._section, self._directory, self._number = backbone, section, directory, number
        self._urls = [url.rstrip("/").removesuffix("/v1") for url in section.engines]
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._is_clean = False
        self.source = "engine"

    def sample(
        self,
        prompts: Sequence[Prompt],
        adapter: str | None,
        *,
        n: int,
        parameters: SamplingParameters,
        seed: int,
    ) -> list[list[Sampled]]:
        """As the protocol says. Raises EngineFailed if any engine fails; nothing stays loaded but where that is away."""
        transcriber = self._backbone.transcriber
        encoded = [transcriber.encode_prompt(prompt) for prompt in prompts]
        at_once = min(n, self._section.max_in_flight)
        parts = [(i, start, min(at_once, n - start)) for i in range(len(encoded)) for start in range(0, n, at_once)]
        with self._loaded(adapter) as name:

            def ask(part: tuple[int, int, int], url: str) -> list[Sampled]:
                i, start, number = part
                body = {
                    "temperature": parameters.temperature,
                    "top_p": parameters.top_p,
                    "model": name,
                    "prompt": list(encoded[i]),
                    "n": number,
                    "seed": derive_seed(seed, i) + start,  # the engine adds 1 for each further answer
                    "max_tokens": fit_limit(encoded[i], parameters.max_tokens, self._backbone.max_tokens),
                    "stop_token_ids": list(transcriber.turn_ends),
                    "logprobs": 1,
                    "return_token_ids": True,
                    "priority": self._section.priority,
                }
                answered = self._post(url, "/v1/completions", body, self._section.timeout_s)
                return self._read(url, answered, number, parameters)

            # n answers a request: so many requests at a time keep max_in_flight answers under way
            with ThreadPoolExecutor(max(1, self._section.max_in_flight // at_once)) as pool:
                futures = [pool.submit(ask, part, url) for part, url in zip(parts, cycle(self._urls), strict=False)]
                try:
                    answers = [future.result() for future in futures]
                except EngineFailed:
                    pool.shutdown(cancel_futures=True)
                    raise
        sampled: list[list[Sampled]] = [[] for _ in prompts]
        for (i, _, _), part_answers in zip(parts, answers, strict=True):
            sampled[i] += part_answers
        return sampled

    def _read(self, url: str, answered: Any, n: int, parameters: SamplingParameters) -> list[Sampled]:
        """The samples of one response. Raises EngineFailed if it holds others than asked for."""
        try:
            choices = sorted(answered["choices"], key=lambda choice: int(choice["index"]))
            sampled = [self._read_choice(choice, parameters) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise EngineFailed(f"{url} gave no samples with token ids and log-probabilities: {error!r}") from error
        if len(sampled) != n:
            raise EngineFailed(f"{url} gave {len(sampled)} answers, {n} were asked for")
        return sampled

    def _read_choice(self, choice: Any, parameters: SamplingParameters) -> Sampled:
        ids = tuple(int(token) for token in choice["token_ids"])
        logprobs = tuple(float(logprob) for logprob in choice["logprobs"]["token_logprobs"])
        if not ids or len(ids) != len(logprobs):
            raise ValueError(f"{len(ids)} ids with {len(logprobs)} log-probabilities")
        turn_ends = self._backbone.transcriber.turn_ends
        is_finished = choice["finish_reason"] == "stop"
        if is_finished and ids[-1] not in turn_ends:
            raise ValueError("an answer that has stopped has no turn end")
        text = self._backbone.transcriber.decode(ids[:-1] if is_finished else ids)
        reason = "stop" if is_finished else str(choice["finish_reason"])
        answer = Answer(
            text=text,
            ids=ids,
            finish_reason=reason,
            temperature=parameters.temperature,
            max_tokens=parameters.max_tokens,
        )
        return Sampled(answer, logprobs)

    @contextmanager
    def _loaded(self, adapter: str | None) -> Iterator[str]:
        """The adapter under a new name and path at every engine; unloaded and deleted afterwards, whatever happens."""
        if not self._is_clean:
            self.clear_leftovers()
            self._is_clean = True
        path, name = self._write(adapter)
        reached: list[str] = []
        try:
            for url in self._urls:
                reached.append(url)
                self._post(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, LOAD_TIMEOUT_S)
            yield name
        finally:
            for url in reached:
                self._unload(url, name)
            shutil.rmtree(path, ignore_errors=True)

    def _write(self, adapter: str | None) -> tuple[Path, str]:
        """Write the adapter's files; the base is written as an adapter with B = 0. Returns their folder and the name."""
        writing = self._directory / f"{PREFIX}writing"
        shutil.rmtree(writing, ignore_errors=True)
        self._backbone.adapters.save(adapter or "stable", writing)
        if adapter is None:
            state = load_file(writing / TENSORS)
            save_file({key: t * 0 if "lora_B" in key else t for key, t in state.items()}, writing / TENSORS)
        digest = hashlib.sha256((writing / TENSORS).read_bytes()).hexdigest()[:12]
        name = f"{PREFIX}{digest}-{self._number()}"
        path = self._directory / name
        writing.rename(path)
        return path.resolve(), name

    def clear_leftovers(self) -> None:
        """Unload and delete what an earlier process of this trainer left behind. Raises EngineFailed."""
        for url in self._urls:
            listed = self._post(url, "/v1/models", None, LOAD_TIMEOUT_S)
            try:
                names = [str(model["id"]) for model in listed["data"]]
            except (KeyError, TypeError) as error:
                raise EngineFailed(f"{url} does not list its models: {error!r}") from error
            for name in names:
                if name.startswith(PREFIX):
                    self._unload(url, name)
        for path in self._directory.glob(f"{PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _unload(self, url: str, name: str) -> None:
        with suppress(EngineFailed):  # it was not loaded, or the engine is gone, and with it the adapter
            self._post(url, "/v1/unload_lora_adapter", {"lora_name": name}, LOAD_TIMEOUT_S)

    def _post(self, url: str, path: str, body: Any, timeout_s: float) -> Any:
        """What the engine answers, parsed if it is JSON; GET where there is no body. Raises EngineFailed."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + path, content, {"content-type": "application/json"})
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                answered = response.read()
        except urllib.error.HTTPError as error:
            said = error.read(300).decode("utf-8", "replace")
            raise EngineFailed(f"{url}{path} answered {error.code}: {said}") from error
        except (OSError, HTTPException) as error:
            raise EngineFailed(f"{url}{path}: {type(error).__name__}: {error}") from error
        try:
            return json.loads(answered)
        except ValueError:
            return answered.decode("utf-8", "replace")


def derive_seed(seed: int, index: int) -> int:
    """A seed for the prompt at this place, far from its neighbours'."""
    return int.from_bytes(hashlib.sha256(f"{seed}-{index}".encode()).digest()[:6], "big")
