"""A small DNS server on loopback, over UDP and TCP, whose zone a test changes as it goes.

Answers A and AAAA; what does not fit in 512 bytes is cut off over UDP, as the protocol says, and whole over TCP.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

_MAX_UDP = 512


@dataclass
class DnsServer:
    """`zone`: name -> addresses; a name that is not there does not exist. Fails or is silent as a test asks.

    failing: the types that get SERVFAIL. is_silent: nothing is answered. num_asked: by type, as A or AAAA; num_tcp: over TCP.
    """

    zone: dict[str, list[str]] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    is_silent: bool = False
    num_asked: dict[str, int] = field(default_factory=dict)
    num_tcp: int = 0
    port: int = 0
    _transport: asyncio.DatagramTransport | None = None
    _tcp: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the same port for both."""
        self._tcp = await asyncio.start_server(self._answer_tcp, "127.0.0.1", self.port)
        self.port = self._tcp.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self), local_addr=("127.0.0.1", self.port)
        )

    async def stop(self) -> None:
        """Listen no more."""
        assert self._tcp is not None and self._transport is not None
        self._transport.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    def answer(self, wire: bytes, max_bytes: int) -> bytes | None:
        """What is said to a question; None for nothing."""
        if self.is_silent:
            return None
        query = dns.message.from_wire(wire)
        [question] = query.question
        kind = dns.rdatatype.to_text(question.rdtype)
        self.num_asked[kind] = self.num_asked.get(kind, 0) + 1
        response = dns.message.make_response(query)
        addresses = self.zone.get(question.name.to_text(omit_final_dot=True))
        if kind in self.failing:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif addresses is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            own = [address for address in addresses if (":" in address) == (kind == "AAAA")]
            if own and kind in ("A", "AAAA"):
                response.answer.append(dns.rrset.from_text(question.name, 5, "IN", kind, *own))
        whole = response.to_wire(max_size=65_535)
        if len(whole) <= max_bytes:
            return whole
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire()

    async def _answer_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_tcp += 1
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            answer = self.answer(await reader.readexactly(length), 65_535)
            if answer is not None:
                writer.write(struct.pack("!H", len(answer)) + answer)
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.answer(data, _MAX_UDP)
        if answer is not None:
            self._transport.sendto(answer, addr)
