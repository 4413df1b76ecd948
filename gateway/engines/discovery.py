"""Finds engines by name: every address that DNS has for it is an engine of the deployment, as long as it has it.

Looks each name up every few seconds. What a lookup does not say changes nothing: one that fails, or that finds no address at
all, leaves the engines that are known. An address that has gone is asked no more, and its requests end; one that comes is looked
at by the swap, and serves only what it has proven. Does not decide whether an engine is fit: the swap does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

from feedback.outages import log_failure
from gateway.engines.resolver import FAMILIES, Family, Found, Resolver

if TYPE_CHECKING:
    from gateway.engines.deployment import Deployment
    from gateway.sections.serving import GatewaySection

logger = logging.getLogger("gateway.discovery")

Outcome = Literal["found", "empty", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("found", "empty", "failed")


class Lookup(Protocol):
    """What looks names up: the DNS, or a test."""

    async def look_up(self, name: str) -> Found:
        """Every address of a name."""


class Discovery:
    """The names of the settings, and the engines that were found by them. `num_lookups` by name and outcome, since the start."""

    def __init__(self, section: GatewaySection, deployment: Deployment, resolver: Lookup | None = None) -> None:
        self._deployment, self._pause_s = deployment, section.resolve_s
        self._resolver = resolver or Resolver(section.dns_server)
        self._fixed = {url.rstrip("/") for url in section.fixed_engines}
        self._known: dict[str, dict[Family, tuple[str, ...]]] = {
            source: dict.fromkeys(FAMILIES, ()) for source in section.engine_names
        }
        self._problems: dict[str, str] = {}
        self.num_lookups: Counter[tuple[str, Outcome]] = Counter()

    @property
    def sources(self) -> list[str]:
        """The URLs whose names are looked up."""
        return list(self._known)

    async def run(self) -> None:
        """Look every name up, each at its own pace, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for source in self._known:
                group.create_task(self._follow(source))

    async def _follow(self, source: str) -> None:
        while True:
            try:
                await self.look_up(source)
            except Exception as error:
                self.num_lookups[source, "failed"] += 1
                log_failure(logger, f"looking up {source} failed", error)
            await asyncio.sleep(self._pause_s)

    async def look_up(self, source: str) -> None:
        """Look one name up, and take in or let go what has changed."""
        name = urlsplit(source).hostname
        assert name is not None, source
        found = await self._resolver.look_up(name)
        outcome: Outcome = "found" if any(found.addresses.values()) else "failed" if found.problem else "empty"
        self.num_lookups[source, outcome] += 1
        self._report_problem(source, outcome, found.problem)
        if outcome == "found":
            known = self._known[source]
            # A kind that could not be looked up keeps what it had: half an answer lets nobody go.
            self._known[source] = {
                family: known[family] if addresses is None else addresses
                for family, addresses in found.addresses.items()
            }
            self._apply()

    def _report_problem(self, source: str, outcome: Outcome, problem: str) -> None:
        """Log what is wrong when it begins and when it is over, not every two seconds."""
        text = {"failed": f"could not be looked up ({problem})", "empty": "has no address"}.get(outcome, "")
        kind = outcome if text else ""
        if kind != self._problems.get(source, ""):
            if text:
                logger.warning("%s %s: the engines known by it stay", source, text)
            else:
                logger.info("%s is found again", source)
        self._problems[source] = kind

    def _apply(self) -> None:
        """Bring the deployment in line with all that is known. The first source that names an address keeps it."""
        named: dict[str, str] = {}
        for source, by_family in self._known.items():
            port = urlsplit(source).port
            for address in (address for addresses in by_family.values() for address in addresses):
                host = f"[{address}]" if ":" in address else address
                named.setdefault(f"http://{host}:{port}", source)
        known = {state.url: state for state in self._deployment.states}
        for url, state in known.items():
            if state.source in self._known and url not in named:
                logger.info("%s is gone from %s: it gets no more requests", url, state.source)
                self._deployment.withdraw_engine(state)
        for url, source in named.items():
            if url not in known and url not in self._fixed:
                logger.info("%s was found by %s", url, source)
                self._deployment.add_engine(url, source=source)
