"""Looks names up in DNS: every A and AAAA address, without a cache, so that what a cluster says now is what counts.

Asks as /etc/resolv.conf says (servers, search list, ndots), over TCP where an answer is cut off, but reads no /etc/hosts. Says
which of the two kinds could not be looked up, because a failure says nothing of who is there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver

_LIFETIME_S = 3.0
_TIMEOUT_S = 1.0  # of one server; the next is asked then

Family = Literal["A", "AAAA"]
FAMILIES: tuple[Family, ...] = ("A", "AAAA")


@dataclass(frozen=True)
class Found:
    """The addresses of a name by kind; None for a kind that could not be looked up, with `problem` saying why."""

    addresses: dict[Family, tuple[str, ...] | None]
    problem: str = ""


class Resolver:
    """Asks `server` (address:port), or those of /etc/resolv.conf if it is empty."""

    def __init__(self, server: str = "") -> None:
        self._server = server

    async def look_up(self, name: str) -> Found:
        """Every address of a name. Never raises for what DNS says or fails to say."""
        try:
            resolver = self._open()
        except (dns.exception.DNSException, OSError) as error:
            return Found(dict.fromkeys(FAMILIES), str(error) or type(error).__name__)
        results = await asyncio.gather(*(_ask(resolver, name, family) for family in FAMILIES))
        problems = [result for result in results if isinstance(result, str)]
        return Found(
            {
                family: None if isinstance(result, str) else result
                for family, result in zip(FAMILIES, results, strict=True)
            },
            problems[0] if problems else "",
        )

    def _open(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=not self._server)  # read anew: it may change
        if self._server:
            parts = urlsplit(f"//{self._server}")
            assert parts.hostname is not None and parts.port is not None
            resolver.nameservers, resolver.port = [parts.hostname], parts.port
        resolver.timeout, resolver.lifetime, resolver.cache = _TIMEOUT_S, _LIFETIME_S, None
        return resolver


async def _ask(resolver: dns.asyncresolver.Resolver, name: str, family: Family) -> tuple[str, ...] | str:
    """The addresses of one kind, or what went wrong."""
    try:
        answer = await resolver.resolve(name, family, raise_on_no_answer=False, search=True)
    except dns.resolver.NXDOMAIN:
        return ()  # which Kubernetes also says of a headless Service without ready pods
    except (dns.exception.DNSException, OSError) as error:
        return f"{family}: {error or type(error).__name__}"
    return tuple(sorted(record.address for record in answer.rrset or ()))
