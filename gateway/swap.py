"""Loads checkpoints into the engines under their own names, and proves that each really answers before it is used.

Level-triggered: remembers which checkpoints are wanted, looks at what each engine holds every few seconds (and at
once after a request failed to connect), and loads again what a restarted engine forgot. Never reuses a name or a
path.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from gateway.deployment import Deployment, EngineState
from gateway.errors import EngineUnavailable, SwapError
from gateway.settings import GatewaySection
from gateway.upstream import Upstream

if TYPE_CHECKING:
    from feedback.manifest import Manifest
    from gateway.tables import CheckpointRow

logger = logging.getLogger("gateway.swap")

_CALL_TIMEOUT_S = 60.0
_TOP_LOGPROBS = 20  # vLLM's own limit
_MIN_PROBED = 3  # tokens that must be among the likeliest


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _ProbeLogprobs(msgspec.Struct):
    top_logprobs: list[dict[str, float]]


class _ProbeChoice(msgspec.Struct):
    index: int
    logprobs: _ProbeLogprobs


class _ProbeAnswer(msgspec.Struct):
    choices: list[_ProbeChoice]


class Swap:
    """Keeps the wanted checkpoints loaded and proven in every engine."""

    def __init__(
        self, deployment: Deployment, engines: Iterable[str], upstream: Upstream, settings: GatewaySection
    ) -> None:
        self._deployment = deployment
        self._engines = list(engines)
        self._upstream = upstream
        self._settings = settings
        self._wanted: dict[str, CheckpointRow] = {}
        self._locks = {engine: asyncio.Lock() for engine in self._engines}
        self._nudge = asyncio.Event()
        self.last_swap_s: float | None = None

    def wants(self, checkpoint: str) -> bool:
        """Whether the checkpoint should be in the engines."""
        return checkpoint in self._wanted

    def digest(self, checkpoint: str) -> str:
        """The digest of a wanted checkpoint, empty for others."""
        row = self._wanted.get(checkpoint)
        return "" if row is None else row.digest

    def nudge(self) -> None:
        """Look at the engines now."""
        self._nudge.set()

    async def load(self, checkpoint: CheckpointRow) -> float:
        """Load and prove the checkpoint in every engine; the seconds it took. Raises SwapError with the reason.

        `SwapError.is_transient` says that an engine did not answer: try again later.
        """
        started = time.monotonic()
        results = await asyncio.gather(
            *(self._load_one(engine, checkpoint) for engine in self._engines), return_exceptions=True
        )
        for result in results:
            if isinstance(result, SwapError):
                raise result
            if isinstance(result, EngineUnavailable):
                raise SwapError(str(result), is_transient=True) from result
            if isinstance(result, BaseException):
                raise result
        self._wanted[checkpoint.id] = checkpoint
        self.last_swap_s = time.monotonic() - started
        return self.last_swap_s

    async def drain_and_unload(self, checkpoint: str, timeout_s: float) -> bool:
        """Wait until no request is in flight on the checkpoint, then unload it; False if the time ran out first."""
        deadline = time.monotonic() + timeout_s
        while self._deployment.in_flight(checkpoint) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        is_drained = not self._deployment.in_flight(checkpoint)
        self._wanted.pop(checkpoint, None)
        await asyncio.gather(*(self._unload_one(engine, checkpoint) for engine in self._engines))
        return is_drained

    async def reconcile(self, wanted: Iterable[CheckpointRow] | None = None) -> None:
        """Load what is missing in engines that answer; `wanted` replaces what is remembered."""
        if wanted is not None:
            self._wanted = {row.id: row for row in wanted}
        await asyncio.gather(*(self._reconcile_one(engine) for engine in self._engines))

    async def run(self) -> None:
        """Reconcile for ever."""
        while True:
            self._nudge.clear()
            try:
                await self.reconcile()
            except Exception:
                logger.exception("reconcile failed")
            await asyncio.sleep(0.1)  # nudges come in crowds
            try:
                async with asyncio.timeout(self._settings.reconcile_s):
                    await self._nudge.wait()
            except TimeoutError:
                pass

    async def _reconcile_one(self, engine: str) -> None:
        state = self._deployment.engines[engine]
        try:
            await self._look_at(state)
        except EngineUnavailable:
            return
        for row in list(self._wanted.values()):
            if row.id in state.proven:
                continue
            try:
                await self._load_one(engine, row)
                logger.info("loaded %s again into %s", row.id, engine)
            except (SwapError, EngineUnavailable) as error:
                logger.warning("could not load %s into %s: %s", row.id, engine, error)

    async def _look_at(self, state: EngineState) -> None:
        try:
            status, body = await self._upstream.call(state.url, "/v1/models", None, timeout_s=5.0)
            if status != 200:
                raise EngineUnavailable(f"{state.url}: /v1/models answered {status}")
            names = frozenset(model.id for model in msgspec.json.decode(body, type=_Models).data)
        except (EngineUnavailable, msgspec.DecodeError) as error:
            state.up = False
            raise EngineUnavailable(str(error)) from error
        state.up = True
        state.adapters = names
        state.proven &= names

    async def _load_one(self, engine: str, row: CheckpointRow) -> None:
        async with self._locks[engine]:
            state = self._deployment.engines[engine]
            await self._look_at(state)
            if row.id in state.proven:
                return
            if row.id not in state.adapters:
                payload = {"lora_name": row.id, "lora_path": row.path}
                status, body = await self._upstream.call(
                    engine, "/v1/load_lora_adapter", payload, timeout_s=_CALL_TIMEOUT_S
                )
                if status != 200 and not (status == 400 and b"already" in body):
                    raise SwapError(f"{engine} refused {row.id} ({status}): {_message(body)}")
            state.adapters |= {row.id}
            await self._prove(engine, row)
            state.proven |= {row.id}

    async def _prove(self, engine: str, row: CheckpointRow) -> None:
        manifest = row.parsed
        ids = manifest.probe.prompt_token_ids
        # One token after every prefix. vLLM's prompt_logprobs would say the same of one prompt, but under LoRA on CPU
        # it kills the engine when other requests share the batch.
        payload = {
            "model": row.id,
            "prompt": [ids[:end] for end in range(1, len(ids))],
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": _TOP_LOGPROBS,
            "return_tokens_as_token_ids": True,
        }
        status, body = await self._upstream.call(engine, "/v1/completions", payload, timeout_s=_CALL_TIMEOUT_S)
        if status != 200:
            if status >= 500:
                raise EngineUnavailable(f"{engine}: the probe got {status}")
            raise SwapError(f"{engine}: the probe of {row.id} got {status}: {_message(body)}")
        measured = read_probe_logprobs(body, ids)
        reason = judge_probe(measured, manifest, self._settings.probe_tolerance)
        if reason is not None:
            raise SwapError(f"{engine}: {row.id} {reason}")

    async def _unload_one(self, engine: str, checkpoint: str) -> None:
        state = self._deployment.engines[engine]
        async with self._locks[engine]:
            state.proven -= {checkpoint}
            state.adapters -= {checkpoint}
            try:
                await self._upstream.call(
                    engine, "/v1/unload_lora_adapter", {"lora_name": checkpoint}, timeout_s=_CALL_TIMEOUT_S
                )
            except EngineUnavailable as error:
                logger.warning("could not unload %s: %s", checkpoint, error)


def read_probe_logprobs(body: bytes, token_ids: list[int]) -> list[float | None]:
    """Log-probabilities of tokens 1..n after their prefixes; None where a token is not among the likeliest 20.

    Raises SwapError if the answer is not that of a probe.
    """
    try:
        answers = sorted(msgspec.json.decode(body, type=_ProbeAnswer).choices, key=lambda choice: choice.index)
        return [
            choice.logprobs.top_logprobs[0].get(f"token_id:{token}")
            for choice, token in zip(answers, token_ids[1:], strict=True)
        ]
    except (msgspec.DecodeError, IndexError, ValueError) as error:
        raise SwapError(f"the probe's answer has no log-probabilities ({error})") from error


def judge_probe(measured: list[float | None], manifest: Manifest, tolerance: float) -> str | None:
    """Why the measured log-probabilities do not prove the adapter; None if they do. Distances in nats, worst token.

    Where the adapter differs from the base, the measurement must lie nearer to the adapter: one with wrong module names
    is loaded without complaint, and answers as the base.
    """
    expected, base = manifest.probe.logprobs, manifest.probe.base_logprobs
    if not expected or len(measured) != len(expected):
        return f"gave {len(measured)} log-probabilities, {len(expected)} were expected"
    known = [i for i, value in enumerate(measured) if value is not None]
    if len(known) < min(_MIN_PROBED, len(expected)):
        return f"gave only {len(known)} of {len(expected)} tokens among the likeliest"
    seen = [value for value in measured if value is not None]
    own = [expected[i] for i in known]
    off = _distance(seen, own)
    if len(base) == len(expected):
        without = [base[i] for i in known]
        if _distance(own, without) > tolerance and _distance(seen, without) <= off:
            return f"answers as the base does (off by {off:.2g} nats)"
    return None if off <= tolerance else f"answers off by {off:.2g} nats (tolerance {tolerance:.2g})"


def _distance(one: list[float], other: list[float]) -> float:
    worst = max(abs(a - b) for a, b in zip(one, other, strict=True))
    return worst if worst == worst else float("inf")


def _message(body: bytes) -> str:
    return body[:500].decode("utf-8", "replace")
