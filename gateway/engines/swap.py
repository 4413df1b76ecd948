"""Loads checkpoints into the engines under their own names, and proves that each really answers before it is used.

Adapters are loaded into the engines of the settings, listed or found by name (discovery.py). A whole model is there as soon
as an engine that was started with it is registered (full_engines.py): it is proven in the same way, and that engine answers
for nothing else.

Level-triggered: remembers which checkpoints are expected, looks at every engine each few seconds (and at once after a
request failed there), and loads again what a restarted engine forgot. An engine that hangs or fails is out until it has
proven itself again. Never reuses a name or a path. What is expected, and when it may go, the rollout controller says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from feedback.outages import log_failure
from gateway.engines.engine import EngineState
from gateway.engines.probe import build_probe, judge_probe, read_probe_logprobs
from gateway.errors import EngineUnavailable, FilesMissing, SwapError

if TYPE_CHECKING:
    from gateway.engines.deployment import Deployment
    from gateway.http.upstream import Upstream
    from gateway.sections.serving import GatewaySection
    from gateway.tables.checkpoints import CheckpointRow

logger = logging.getLogger("gateway.swap")

_LOOK_TIMEOUT_S = 5.0
_CALL_TIMEOUT_S = 60.0
_UNLOAD_TIMEOUT_S = 10.0
_WAKE_PAUSE_S = 0.1  # calls come in crowds
# Counters that move while vLLM computes, be it a long prompt in pieces or one answer that is not streamed.
_TOKEN_COUNTERS = (b"vllm:generation_tokens_total", b"vllm:prompt_tokens_total", b"vllm:iteration_tokens_total_sum")


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class Swap:
    """Keeps the expected checkpoints loaded and proven in every engine, and decides which engines are fit for use."""

    def __init__(self, deployment: Deployment, upstream: Upstream, settings: GatewaySection) -> None:
        self._deployment = deployment
        self._upstream = upstream
        self._settings = settings
        self._expected: dict[str, CheckpointRow] = {}
        self._digests: dict[str, str] = {}
        self._loading: Counter[str] = Counter()
        self.last_swap_s: float | None = None

    # -- what is expected

    @property
    def expected(self) -> frozenset[str]:
        """The checkpoints that should be in the engines."""
        return frozenset(self._expected)

    def is_expected(self, checkpoint: str) -> bool:
        """Whether the checkpoint should be in the engines."""
        return checkpoint in self._expected

    @property
    def held(self) -> frozenset[str]:
        """The expected checkpoints, and those that are being loaded: who unloads one of them waits."""
        return frozenset(self._expected) | frozenset(self._loading)

    def digest(self, checkpoint: str) -> str:
        """The digest of a checkpoint that was loaded since start, empty for others."""
        return self._digests.get(checkpoint, "")

    def release(self, checkpoint: str) -> None:
        """Load the checkpoint no more; it stays where it is loaded."""
        self._expected.pop(checkpoint, None)

    def wake(self) -> None:
        """Look at the engines now."""
        for state in self._states:
            state.wake.set()

    def _look_at(self, url: str) -> None:
        """One engine may have ended."""
        for state in self._states:
            if state.url == url:
                state.wake.set()

    @property
    def _states(self) -> tuple[EngineState, ...]:
        return self._deployment.states

    def use_registered(self, engines: Mapping[str, str]) -> None:
        """Of whole models, these engines (url -> the model each holds) may be used, and no others.

        One whose URL is an engine for adapters by now is left out.
        """
        known = {state.url: state for state in self._states}
        for url, state in known.items():
            if state.checkpoint is not None and engines.get(url) != state.checkpoint:
                self._deployment.withdraw_engine(state)
        for url, checkpoint in engines.items():
            if url not in known or known[url].is_withdrawn:
                self._deployment.add_engine(url, checkpoint)
        for url in self._deployment.forget_withdrawn():
            self._upstream.forget(url)

    async def load(self, checkpoint: CheckpointRow) -> float:
        """Load and prove the checkpoint in every engine that is in use; the seconds it took. Raises SwapError.

        The others get it before they are used again. `SwapError.is_transient`: no engine answered, try again later.
        """
        self._loading[checkpoint.id] += 1
        try:
            return await self._load(checkpoint)
        finally:
            self._loading[checkpoint.id] -= 1
            self._loading = +self._loading

    async def _load(self, checkpoint: CheckpointRow) -> float:
        started = time.monotonic()
        able = [state for state in self._states if state.may_hold(checkpoint.id, is_full=checkpoint.is_full)]
        if not able:
            raise SwapError(f"no engine for {checkpoint.id} is known", is_transient=True)
        states = [state for state in able if state.is_usable] or able
        results = await asyncio.gather(*(self._load_one(state, checkpoint) for state in states), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, EngineUnavailable):
                raise result
        unavailable = [result for result in results if isinstance(result, EngineUnavailable)]
        if len(unavailable) == len(results):
            raise SwapError(str(unavailable[0]), is_transient=True) from unavailable[0]
        self._expected[checkpoint.id] = checkpoint
        self._digests[checkpoint.id] = checkpoint.digest
        self.last_swap_s = time.monotonic() - started
        return self.last_swap_s

    async def unload(self, checkpoint: CheckpointRow) -> None:
        """Take the checkpoint out of every engine. The caller knows that nobody asks for it any more."""
        self.release(checkpoint.id)
        able = [state for state in self._states if state.may_hold(checkpoint.id, is_full=checkpoint.is_full)]
        await asyncio.gather(*(self._unload_one(state, checkpoint.id) for state in able))

    # -- the loops

    async def run(self) -> None:
        """Keep every engine reconciled, each in a loop of its own: one that hangs does not hold up the others."""
        self._upstream.on_lost = self._look_at
        kept: dict[EngineState, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._deployment.have_changed.clear()
                for state in kept.keys() - set(self._deployment.watched):
                    kept.pop(state).cancel()
                for state in self._states:
                    if not self._deployment.is_single:  # else nobody else could be asked
                        state.on_hang = partial(self._upstream.drop_waiting, state.url)
                    if state not in kept:
                        kept[state] = group.create_task(self._keep(state))
                await self._deployment.have_changed.wait()

    async def _keep(self, state: EngineState) -> None:
        while not state.is_withdrawn or state.num_in_flight:
            state.wake.clear()
            try:
                await self.reconcile_engine(state)
            except Exception as error:
                log_failure(logger, f"reconciling {state.url} failed", error)
            await asyncio.sleep(_WAKE_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.reconcile_s):
                    await state.wake.wait()

    async def reconcile_engine(self, state: EngineState) -> None:
        """Look at the engine once, and do what it needs."""
        with contextlib.suppress(EngineUnavailable):  # state.up says so
            await self._inspect(state)
        if not state.is_hung and state.is_silent(time.monotonic(), self._settings.hang_s):
            logger.error("%s hangs: %d requests and no token", state.url, state.num_in_flight)
            state.mark_hung(time.monotonic())
        if not state.up or state.is_withdrawn:
            return
        if state.breaker.phase == "closed":
            await self._load_missing(state, _CALL_TIMEOUT_S)
        elif state.begin_trial(time.monotonic()):
            has_passed = False
            try:
                has_passed = await self._load_missing(state, min(_CALL_TIMEOUT_S, self._settings.hang_s))
            finally:
                state.end_trial(time.monotonic(), has_passed=has_passed)
            logger.warning("%s %s", state.url, "is back in use" if has_passed else "failed its trial")

    async def _load_missing(self, state: EngineState, timeout_s: float) -> bool:
        """Load and prove what is expected and not proven; False if the engine failed to answer, or refused everything."""
        num_refused = num_missing = 0
        for row in list(self._expected.values()):
            if (
                row.id in state.proven
                or not self.is_expected(row.id)
                or not state.may_hold(row.id, is_full=row.is_full)
            ):
                continue
            try:
                await self._load_one(state, row, timeout_s)
                logger.info("loaded %s again into %s", row.id, state.url)
            except FilesMissing as error:  # the others need not wait for it
                logger.info("%s", error)
                num_missing += 1
            except (SwapError, EngineUnavailable) as error:
                logger.warning("could not load %s into %s: %s", row.id, state.url, error)
                if isinstance(error, EngineUnavailable) and self.is_expected(row.id):
                    return False
                num_refused += 1
            if not self.is_expected(row.id):  # it was unloaded meanwhile
                await self._unload_one(state, row.id)
        return not (num_refused or num_missing) or bool(state.proven)

    # -- one engine

    async def _inspect(self, state: EngineState) -> None:
        """Take note of what the engine holds and how it does. Raises EngineUnavailable."""
        try:
            (status, body), metrics = await asyncio.gather(
                self._upstream.call(state.url, "/v1/models", None, timeout_s=_LOOK_TIMEOUT_S), self._read_metrics(state)
            )
            if status != 200:
                raise EngineUnavailable(f"{state.url}: /v1/models answered {status}")
            names = frozenset(model.id for model in msgspec.json.decode(body, type=_Models).data)
        except (EngineUnavailable, msgspec.DecodeError) as error:
            state.up = False
            raise EngineUnavailable(str(error)) from error
        started_at = read_metric(metrics, (b"process_start_time_seconds",))
        state.record_inspection(time.monotonic(), names, started_at, read_metric(metrics, _TOKEN_COUNTERS))

    async def _read_metrics(self, state: EngineState) -> bytes:
        try:
            status, body = await self._upstream.call(state.url, "/metrics", None, timeout_s=_LOOK_TIMEOUT_S)
        except EngineUnavailable:
            return b""
        return body if status == 200 else b""

    async def _load_one(self, state: EngineState, row: CheckpointRow, timeout_s: float = _CALL_TIMEOUT_S) -> None:
        async with state.lock:
            await self._inspect(state)
            if row.id in state.proven:
                return
            if row.id not in state.adapters:
                if state.checkpoint is not None:
                    held = ", ".join(sorted(state.adapters)) or "nothing"
                    raise EngineUnavailable(f"{state.url} should hold {row.id} and holds {held}")
                folder = self._settings.engine_checkpoints_dir.rstrip("/")
                payload = {"lora_name": row.id, "lora_path": f"{folder}/{row.id}" if folder else row.path}
                status, body = await self._upstream.call(
                    state.url, "/v1/load_lora_adapter", payload, timeout_s=timeout_s
                )
                if status == 404 and folder and b"adapter" in body:  # else the route itself is not there
                    raise FilesMissing(f"{state.url} has not fetched {row.id} yet")
                if status >= 500 and not state.is_failure_certain(row.id, time.monotonic()):
                    raise EngineUnavailable(f"{state.url} failed to load {row.id} ({status}): {_message(body)}")
                if status != 200 and not (status == 400 and b"already" in body):
                    raise SwapError(f"{state.url} refused {row.id} ({status}): {_message(body)}")
            state.failed_loads.pop(row.id, None)
            state.adapters |= {row.id}
            await self._prove(state, row, timeout_s)
            if not state.is_withdrawn:
                state.proven |= {row.id}

    async def _prove(self, state: EngineState, row: CheckpointRow, timeout_s: float) -> None:
        manifest = row.parsed
        ids = manifest.probe.prompt_token_ids
        status, body = await self._upstream.call(
            state.url, "/v1/completions", build_probe(row.id, ids), timeout_s=timeout_s
        )
        if status != 200:
            if status >= 500 or status == 404:  # it restarted since the load
                raise EngineUnavailable(f"{state.url}: the probe got {status}")
            raise SwapError(f"{state.url}: the probe of {row.id} got {status}: {_message(body)}")
        reason = judge_probe(read_probe_logprobs(body, ids), manifest, self._settings.max_probe_difference)
        if reason is not None:
            raise SwapError(f"{state.url}: {row.id} {reason}")

    async def _unload_one(self, state: EngineState, checkpoint: str) -> None:
        async with state.lock:
            if self.is_expected(checkpoint):  # again
                return
            state.proven -= {checkpoint}
            if state.checkpoint is not None:  # whoever runs the engine ends it
                return
            state.adapters -= {checkpoint}
            try:
                await self._upstream.call(
                    state.url, "/v1/unload_lora_adapter", {"lora_name": checkpoint}, timeout_s=_UNLOAD_TIMEOUT_S
                )
            except EngineUnavailable as error:
                logger.warning("could not unload %s: %s", checkpoint, error)


def read_metric(text: bytes, names: tuple[bytes, ...]) -> float | None:
    """The sum of all series of these names in Prometheus' text; None if there is none."""
    total: float | None = None
    for name in names:
        start = text.find(b"\n" + name)
        while start >= 0:
            end = text.find(b"\n", start + 1)
            line = text[start + 1 : end if end >= 0 else len(text)]
            if line[len(name) : len(name) + 1] in (b" ", b"{"):
                with contextlib.suppress(ValueError):
                    total = (total or 0.0) + float(line.rpartition(b" ")[2])
            start = text.find(b"\n" + name, start + 1)
    return total


def _message(body: bytes) -> str:
    return body[:500].decode("utf-8", "replace")
