"""Free ports of the loopback interface, for servers that this machine runs for itself."""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)  # below what systems hand to clients: while a server is down, nobody else gets its port


def find_port() -> int:
    """A port of 127.0.0.1 where nobody listens, and that no client gets by chance. Raises OSError if there is none."""
    return find_neighbouring_ports(1)


def find_neighbouring_ports(num_ports: int) -> int:
    """The first of so many ports in a row that are free, as `find_port` finds one. Raises OSError if there are none."""
    for first in random.SystemRandom().sample(PORTS, 200):
        if all(is_free(port) for port in range(first, first + num_ports)):
            return first
    raise OSError(f"no {num_ports} free ports in a row on 127.0.0.1" if num_ports > 1 else "no free port on 127.0.0.1")


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
