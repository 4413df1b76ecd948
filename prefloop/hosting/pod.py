"""One pod that runs at most one whole model: claims one that needs an engine, starts it, withdraws and stops it when it is not needed.

Blue and green are two such pods. A claim is the registration of the pod's own address; of two that claim the same model the earlier
registration keeps it. A claim whose engine and host are both silent, and which the gateway does not reach, is withdrawn by a pod that
is free. Level-triggered: looks again and again. While the gateway does not answer nothing changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from prefloop.engine_host import HEALTH_TIMEOUT_S, is_healthy
from prefloop.hosting.gateway import EngineDesk, GatewayAway, KnownEngine, View, WholeModel
from prefloop.supervisor import Service, Supervisor

log = logging.getLogger("prefloop.engine_host")

STOP_POLL_S = 0.2


@dataclass(frozen=True)
class PodView:
    """What a pod does. state: "free", "fetching", "starting" or "serving"; reason: what went wrong last, "" for nothing."""

    state: str
    checkpoint: str | None
    url: str
    reason: str = ""


class Pod:
    """url: of this pod's engine, as gateways reach it. fetch gives a model's directory here; build_service what serves it."""

    def __init__(
        self,
        desk: EngineDesk,
        url: str,
        supervisor: Supervisor,
        fetch: Callable[[WholeModel], Awaitable[Path]],
        build_service: Callable[[WholeModel, Path], Service],
        *,
        host_port: int,
        silent_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk, self._url, self._supervisor = desk, url.rstrip("/"), supervisor
        self._fetch, self._build_service = fetch, build_service
        self._host_port, self._silent_s, self._clock = host_port, silent_s, clock
        self.model: WholeModel | None = None
        self._fetching: asyncio.Task[Path] | None = None
        self._service = ""
        self._is_healthy = False
        self._silent_since: dict[str, float] = {}
        self._reason = ""
        self.answered_at = float("-inf")  # by the clock: when the gateway last said what it needs

    def view(self) -> PodView:
        """What it does now."""
        state = "free"
        if self.model is not None:
            state = "serving" if self._is_healthy else "starting" if self._service else "fetching"
        reason = self._reason
        if self._service and (service := self._supervisor.states.get(self._service)) is not None:
            reason = reason or service.reason
        return PodView(state, self.model.checkpoint if self.model else None, self._url, reason)

    async def run(self, poll_s: float) -> None:
        """Reconcile until cancelled."""
        while True:
            try:
                await self.reconcile()
                self._reason = ""
            except Exception as error:  # the loop's edge
                if str(error) != self._reason:
                    log.warning("trying again: %s", error)
                self._reason = str(error)
            await asyncio.sleep(poll_s)

    async def reconcile(self) -> None:
        """Look once, and do what that takes. Raises GatewayAway, and what fetching a model raises."""
        view = await self._desk.look()
        self.answered_at = self._clock()
        if self.model is not None and self.model.checkpoint not in {each.checkpoint for each in view.wanted}:
            log.info("%s is not needed any more", self.model.checkpoint)
            await self.let_go()
            return
        if self.model is None:
            await self._take_one(view)
        elif not await self._keep_claim(view, self.model):
            await self.let_go()
            return
        await self._serve()

    async def let_go(self) -> None:
        """Withdraw first, so that no gateway asks an engine that is gone; then stop it. Raises GatewayAway."""
        await self._desk.withdraw(self._url)
        if self._fetching is not None:
            self._fetching.cancel()
        if self._service:
            await self._supervisor.end(self._service)
        self.model, self._fetching, self._service, self._is_healthy = None, None, "", False

    async def leave(self, drain_s: float) -> None:
        """The pod is to end: nothing new goes to its engine, and what is under way ends, within so many seconds."""
        if self.model is None:
            return
        ends_at = self._clock() + drain_s
        try:
            await self._desk.withdraw(self._url)
            while self._clock() < ends_at:
                mine = [each for each in (await self._desk.look()).data if each.url == self._url]
                if not any(each.in_flight for each in mine):
                    return
                await asyncio.sleep(STOP_POLL_S)
        except GatewayAway as error:
            log.warning("leaving without the gateway: %s", error)

    # Claims

    async def _take_one(self, view: View) -> None:
        """Claim the first model that has no engine; or go on with what this address is registered for."""
        mine = next((each for each in view.data if each.url == self._url and not each.is_withdrawn), None)
        needed = {each.checkpoint: each for each in view.wanted}
        if mine is not None and mine.checkpoint in needed:  # of this pod before it was started again
            log.info("%s is registered for this address", mine.checkpoint)
            self.model = needed[mine.checkpoint]
            return
        if mine is not None:
            await self._desk.withdraw(self._url)
        await self._withdraw_silent(view)
        model = next((each for each in view.wanted if not view.list_claims(each.checkpoint)), None)
        if model is not None:
            await self._claim(model)

    async def _claim(self, model: WholeModel) -> None:
        """Register, and look who was first."""
        await self._desk.register(self._url, model.checkpoint)
        claims = (await self._desk.look()).list_claims(model.checkpoint)
        if claims and claims[0].url != self._url:
            log.info("%s goes to %s, which was earlier", model.checkpoint, claims[0].url)
            await self._desk.withdraw(self._url)
            return
        log.info("%s is claimed", model.checkpoint)
        self.model = model

    async def _keep_claim(self, view: View, model: WholeModel) -> bool:
        """Whether the model is still this pod's. A registration that was lost is made again, unless another pod has the model."""
        claims = view.list_claims(model.checkpoint)
        if claims and claims[0].url != self._url and not self._is_healthy:
            log.info("%s has %s, and was earlier", claims[0].url, model.checkpoint)
            return False
        if not any(each.url == self._url for each in claims):
            await self._desk.register(self._url, model.checkpoint)
        return True

    async def _withdraw_silent(self, view: View) -> None:
        """Withdraw claims of pods that are gone."""
        needed = {each.checkpoint for each in view.wanted}
        claims = [each for each in view.data if each.checkpoint in needed and not each.is_withdrawn and not each.up]
        self._silent_since = {url: at for url, at in self._silent_since.items() if url in {each.url for each in claims}}
        for each in claims:
            if await self._answers(each):
                self._silent_since.pop(each.url, None)
                continue
            since = self._silent_since.setdefault(each.url, self._clock())
            if self._clock() - since >= self._silent_s:
                log.warning(
                    "%s has not answered for %.0f s: its claim of %s is withdrawn",
                    each.url,
                    self._silent_s,
                    each.checkpoint,
                )
                await self._desk.withdraw(each.url)
                del self._silent_since[each.url]

    async def _answers(self, engine: KnownEngine) -> bool:
        """Whether an engine, or its host, which answers while the engine starts, is there."""
        parts = urlsplit(engine.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return await is_healthy(engine.url) or await claims_checkpoint(
            f"http://{host}:{self._host_port}", engine.url, engine.checkpoint
        )

    # The engine

    async def _serve(self) -> None:
        """Fetch the model, start its engine, and see whether it answers."""
        if self.model is None:
            return
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._run_fetch(self.model))
        if not self._fetching.done():
            return
        if not self._service:
            try:
                path = self._fetching.result()
            except Exception:
                self._fetching = None  # tried again at the next look
                raise
            service = self._build_service(self.model, path)
            self._service = service.name
            self._supervisor.start(service)
        self._is_healthy = await is_healthy(self._url)

    async def _run_fetch(self, model: WholeModel) -> Path:
        return await self._fetch(model)


async def claims_checkpoint(host_url: str, engine_url: str, checkpoint: str | None) -> bool:
    """Whether a host says that it runs, or starts, an engine at this address for this model."""
    try:
        async with httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S) as client:
            said = (await client.get(f"{host_url}/status")).json()
            return (said["url"], said["checkpoint"]) == (engine_url, checkpoint)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False
