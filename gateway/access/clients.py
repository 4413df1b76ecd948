"""Where a request comes from: the address and scheme of the client, behind reverse proxies too.

Forwarded headers count only from the proxies of `gateway.trusted_proxies`. A request that any other proxy has passed on
has no known address, so it never passes for one of this machine. `Forwarded` (RFC 7239) is noticed, not read.
"""

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from starlette.requests import Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
FORWARDED_HEADERS = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "forwarded", "via")


@dataclass(frozen=True)
class Client:
    """Who sent a request. `address` is "" where it cannot be known."""

    address: str
    is_https: bool

    @property
    def is_local(self) -> bool:
        """Whether it is a program on this machine that asked without a proxy between."""
        return is_loopback(self.address)


def find_client(peer: str | None, scheme: str, headers: Mapping[str, str], trusted: Collection[Network]) -> Client:
    """The client behind the connection of `peer`. `headers`: lower-case names, repeated ones joined by commas."""
    if not _is_trusted(peer or "", trusted):
        is_passed_on = any(name in headers for name in FORWARDED_HEADERS)
        return Client("" if is_passed_on else peer or "", scheme == "https")
    hops = [hop.strip() for hop in headers.get("x-forwarded-for", "").split(",")]
    address = next((hop for hop in reversed(hops) if not _is_trusted(hop, trusted)), "")
    proto = headers.get("x-forwarded-proto", scheme).partition(",")[0].strip().lower()
    return Client(
        "" if is_loopback(address) else address, proto == "https"
    )  # a proxy passes on what came from elsewhere


def find_request_client(request: Request, trusted: Collection[Network]) -> Client:
    """`find_client` of a request as Starlette has it."""
    headers = {name: ",".join(request.headers.getlist(name)) for name in request.headers}
    peer = None if request.client is None else request.client.host
    return find_client(peer, request.url.scheme, headers, trusted)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_trusted(host: str, trusted: Collection[Network]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in trusted)
