"""Measures how far the canary's answers are from stable's, in the background: the sensor of the guardrail "kl".

A share of users, by keyed hash, and of each the first answer in a duel of which the tokens are known. Both arms are asked for the
next token at places of it, at low priority, two answers at a time and so many a second as the settings allow; what is more is left
out, whatever it says. No client waits for it, and none of it counts as used. An engine that fails at it leaves that user out.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter

from feedback.outages import log_failure
from gateway.engines.deployment import Deployment, ServingView
from gateway.engines.next_tokens import build_next_tokens, build_whole, read_next_tokens, read_whole
from gateway.errors import EngineUnavailable, SwapError
from gateway.http.upstream import Upstream
from gateway.rollout.observations import Observations
from gateway.rollout.pure.assignment import unit
from gateway.rollout.pure.divergence import compare_answers
from gateway.sections.rollout import Kl
from gateway.serving.shadow_queue import ShadowQueue

logger = logging.getLogger("gateway.divergence")

MAX_IN_FLIGHT = 2
_SALT = b"kl"  # who is measured is independent of who is served by which arm
_PATH = "/v1/completions"


class DivergenceSensor:
    """`find_observations`: where measurements are kept. `clock` is monotonic."""

    def __init__(
        self,
        deployment: Deployment,
        upstream: Upstream,
        find_observations: Callable[[], Observations],
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deployment, self._upstream, self._find_observations = deployment, upstream, find_observations
        self._clock, self._rng = clock, random.SystemRandom()
        self._queue = ShadowQueue()
        self._may_begin_at = 0.0
        self._has_priorities = True
        self._counts = Counter(
            "prefloop_kl_measurements", "Answers whose divergence from stable was measured, failed or left out.", ["outcome"],
            registry=registry,
        )  # fmt: skip

    def offer(self, view: ServingView, user: str, prompt: list[int] | None, answer: list[int] | None) -> None:
        """Measure the canary's answer to a user, if it is one of those to be measured. prompt, answer: token ids."""
        kl, rollout = view.kl, view.rollout
        if kl is None or rollout is None or view.canary is None or view.stable is None or not user:
            return
        if not prompt or not answer or unit(view.salt + _SALT, user) >= kl.share:
            return
        observations, now = self._find_observations(), self._clock()
        if not observations.claim_measurement(rollout, user):
            return
        work = partial(self._measure, kl, rollout, (view.canary, view.stable), user, prompt, answer)
        if now >= self._may_begin_at and self._queue.start(work, MAX_IN_FLIGHT):
            self._may_begin_at = now + 1 / kl.max_per_s
        else:
            observations.unclaim_measurement(user)
            self._counts.labels("left_out").inc()

    def close(self) -> None:
        """Measure no more."""
        self._queue.close()

    async def _measure(
        self, kl: Kl, rollout: str, arms: tuple[str, str], user: str, prompt: list[int], answer: list[int]
    ) -> None:
        at = time.time()
        places = sorted(self._rng.sample(range(len(answer)), min(kl.places, len(answer))))
        try:
            canary, stable = [await self._ask(kl, checkpoint, prompt, answer, places) for checkpoint in arms]
        except (EngineUnavailable, SwapError) as error:
            self._counts.labels("failed").inc()
            log_failure(logger, "an answer's divergence from stable could not be measured", error)
            return
        self._counts.labels("measured").inc()
        self._find_observations().record_divergence(rollout, user, at, compare_answers(canary, stable))

    async def _ask(
        self, kl: Kl, checkpoint: str, prompt: list[int], answer: list[int], places: list[int]
    ) -> list[dict[int, float]]:
        """The next token's distribution at each place, or along the whole answer. Raises EngineUnavailable, SwapError."""
        if kl.whole:
            return read_whole(await self._post(kl, checkpoint, build_whole(checkpoint, prompt + answer)), len(answer))
        prefixes = [prompt + answer[:place] for place in places]
        return read_next_tokens(await self._post(kl, checkpoint, build_next_tokens(checkpoint, prefixes)), len(places))

    async def _post(self, kl: Kl, checkpoint: str, body: dict[str, object]) -> bytes:
        engine = self._deployment.pick_engine(checkpoint)
        self._deployment.begin(checkpoint, engine)
        try:
            if self._has_priorities and kl.priority:
                status, found = await self._upstream.call(
                    engine.url, _PATH, {**body, "priority": kl.priority}, timeout_s=kl.timeout_s
                )
                if status == 400 and b"priority" in found:  # an engine without --scheduling-policy priority
                    self._has_priorities = False
            if not self._has_priorities or not kl.priority:
                status, found = await self._upstream.call(engine.url, _PATH, body, timeout_s=kl.timeout_s)
        finally:
            self._deployment.end(checkpoint, engine)
        if status != 200:
            raise SwapError(f"the engine answered {status}: {found[:200].decode('utf-8', 'replace')}")
        return found
