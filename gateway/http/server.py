"""The HTTP server: uvicorn with our protocol, and an interpreter that is set up for serving."""

from __future__ import annotations

import gc
import socket
import sys
from typing import Any

import uvicorn

from gateway.http.protocol import ServingProtocol

_SWITCH_S = 0.0005


class _Server(uvicorn.Server):
    """Once it listens, what the process has made so far is no longer looked through for garbage.

    A full collection over it stops every request for 70 ms, a few times in ten thousand choices. A thread that waits
    for the interpreter's lock is woken at the end of each of the loop's callbacks, in vain: with Python's 5 ms a
    hundred times before it is let in, with half a millisecond ten times.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.setswitchinterval(_SWITCH_S)
        gc.collect()
        gc.freeze()


def build_server(app: Any, *, host: str, port: int, drain_timeout_s: float, is_quiet: bool = True) -> uvicorn.Server:
    """The server of a gateway; its owner runs it."""
    return _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="uvloop",
            http=ServingProtocol,
            log_config=None,  # its lines look like ours
            ws="none",
            log_level="warning" if is_quiet else "info",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(drain_timeout_s),
        )
    )
