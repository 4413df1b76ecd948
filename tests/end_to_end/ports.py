"""Free ports for a whole machine: the gateway's, and the two after it."""

import socket


def find_free_port() -> int:
    """A port whose two neighbours are free as well."""
    for port in range(18800, 19800, 10):
        if all(not is_taken(port + offset) for offset in range(3)):
            return port
    raise AssertionError("no free ports")


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
