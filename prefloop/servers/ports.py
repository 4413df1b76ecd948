"""Free ports of the loopback interface, for servers that this machine runs for itself."""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)  # below what systems hand to clients: while a server is down, nobody else gets its port


def find_port() -> int:
    """A port of 127.0.0.1 where nobody listens, and that no client gets by chance. Raises OSError if there is none."""
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on 127.0.0.1")
