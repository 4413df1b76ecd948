"""What several nodes need to train one round: a launch, written where all of them look, and the torchrun that joins it.

The trainer is one of the nodes. Its launch lies as `launch.json` in the directory of rounds, which all nodes see, for as long as the
training runs; each node starts its processes for it, and they meet at the rendezvous that the trainer hosts. A node that is lost
stops nobody for good: the processes of all others begin again from the newest snapshot once it is back.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from feedback.durable import write_durably

LAUNCH = "launch.json"
MAX_RESTARTS = 10  # of a training's processes: a node came and went
# Else processes look for each other under how often their own agent began again, which a node that came later knows nothing of.
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class NodesMissing(Exception):
    """Not all nodes came in time: the round goes on when they are there."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One training. run: a name of its own; directory: of the job, below where the launch lies; endpoint: host:port of the trainer.

    num_processes: on each node. wait_s: how long nodes wait for each other.
    """

    run: str
    directory: str
    num_nodes: int
    num_processes: int
    endpoint: str
    wait_s: float


@dataclass(frozen=True)
class Nodes:
    """How rounds train in several nodes. folder: the directory of rounds, seen by all."""

    num: int
    endpoint: str
    folder: Path
    wait_s: float = 600.0


class Posted:
    """A launch that other nodes can see, until the block ends."""

    def __init__(self, folder: Path, launch: Launch) -> None:
        self._path, self._launch = folder / LAUNCH, launch

    def __enter__(self) -> Launch:
        write_durably(self._path, msgspec.json.encode(self._launch))
        return self._launch

    def __exit__(self, *error: object) -> None:
        self._path.unlink(missing_ok=True)


def read_launch(folder: Path) -> Launch | None:
    """The launch that is on, None if there is none."""
    try:
        return msgspec.json.decode((folder / LAUNCH).read_bytes(), type=Launch)
    except (OSError, ValueError):
        return None


def build_torchrun(launch: Launch, directory: Path, *, is_head: bool) -> list[str]:
    """The command that trains on this node; is_head: on the trainer's, which hosts the rendezvous."""
    host, _, port = launch.endpoint.rpartition(":")
    launcher = ["torch.distributed.run", "--nnodes", str(launch.num_nodes)]
    launcher += ["--nproc-per-node", str(launch.num_processes), "--max-restarts", str(MAX_RESTARTS)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", launch.endpoint, "--rdzv-id", launch.run]
    options = {"is_host": str(is_head).lower(), "join_timeout": f"{launch.wait_s:.0f}", "read_timeout": "60"}
    launcher += ["--rdzv-conf", ",".join(f"{name}={value}" for name, value in options.items())]
    launcher += ["--local-addr", find_address(host, int(port))]
    return [sys.executable, "-m", *launcher, "-m", "trainer.learn.worker", str(directory)]


def find_address(host: str, port: int) -> str:
    """This machine's address as the others see it: from which it would reach the trainer. Its name need not be known to them."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])
