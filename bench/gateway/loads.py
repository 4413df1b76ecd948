"""The loads, and what one of them measured of one peer.

wrk makes the loads of whole answers, client.c the streams and the fixed rate. Each is one thread, so that on two cores
a peer with one thread has a core to itself. Raises LoadFailed when a load cannot be read.
"""

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from bench.gateway.peers import MODEL, Peer
from bench.gateway.tools import SOURCES

REQUEST_BYTES = 478
NUM_EVENTS = 64  # of one stream
PACED_STREAMS, PACE_MS = 64, 10  # 6,400 events a second, slow enough that each travels alone
RATE = 2000
_AFTERWARDS_S = 0.3


class LoadFailed(Exception):
    """A load generator failed, or said what cannot be read."""


class Load(StrEnum):
    """What is asked of a peer."""

    SIXTEEN = "16 connections"
    ONE = "1 connection"
    STREAMS = "16 streams"
    PACED = "64 paced streams"
    FIRST = "1 stream"
    RATE = "2,000 requests/s"


@dataclass(frozen=True)
class Sample:
    """One load on one peer. Times in seconds or microseconds; cpu_s is the peer's, its children's included."""

    peer: str
    load: Load
    round: int
    seconds: float
    answers: int
    failed: int
    cpu_s: float
    events: int = 0
    whole_p50_us: float = 0.0
    whole_p99_us: float = 0.0
    first_p50_us: float = 0.0

    @property
    def answers_s(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds

    @property
    def events_s(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds for an event of a stream, else for an answer."""
        return self.cpu_s * 1e6 / max(self.events or self.answers, 1)


class Loads:
    """Runs loads against peers. `wrk` and `client` are command lines, `mock_url` takes the streams' pace."""

    def __init__(self, wrk: Sequence[str], client: Path, mock_url: str, folder: Path) -> None:
        self._wrk = list(wrk)
        self._client = str(client)
        self._mock_url = mock_url
        self._whole = folder / "whole.json"
        self._stream = folder / "stream.json"
        self._short = folder / "short.json"
        self._whole.write_bytes(build_request(stream=False))
        self._stream.write_bytes(build_request(stream=True))
        self._short.write_bytes(build_request(stream=True, max_tokens=4))

    def run(self, load: Load, peer: Peer, seconds: float, round_number: int) -> Sample:
        """Run one load. Raises LoadFailed."""
        httpx.post(f"{self._mock_url}/pace/{PACE_MS if load is Load.PACED else 0}").raise_for_status()
        argv = self._command(load, peer, seconds)
        cpu_s = peer.server.cpu_s()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60)
        time.sleep(_AFTERWARDS_S)  # what a peer puts off until the load is over is part of its price
        cpu_s = peer.server.cpu_s() - cpu_s
        return read_sample(done.stdout, peer.name, load, round_number, cpu_s, done.stderr)

    def _command(self, load: Load, peer: Peer, seconds: float) -> list[str]:
        if load in (Load.SIXTEEN, Load.ONE):
            argv = [*self._wrk, "-t1", "-c16" if load is Load.SIXTEEN else "-c1", f"-d{max(1, round(seconds))}s"]
            argv += ["-s", str(SOURCES / "post.lua"), peer.server.url]
            return [*argv, "--", str(self._whole), "64", "X-Prefloop-User: user-", *peer.headers]
        connections, rate, body = {
            Load.STREAMS: (16, 0, self._stream),
            Load.PACED: (PACED_STREAMS, 0, self._stream),
            Load.FIRST: (1, 0, self._short),
            Load.RATE: (16, RATE, self._whole),
        }[load]
        return [
            self._client,
            str(peer.server.port),
            *(str(x) for x in (connections, seconds, rate, body)),
            *peer.headers,
        ]


def build_request(*, stream: bool, max_tokens: int = NUM_EVENTS) -> bytes:
    """A chat request of 478 bytes, compact JSON; `max_tokens` is how many events the mock will send."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "system", "content": "You answer in one paragraph."}, {"role": "user", "content": ""}],
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "stream": stream,
    }
    missing = REQUEST_BYTES - len(json.dumps(body, separators=(",", ":")))
    question = "How does a river choose its way through a valley, and why does it bend where it bends? "
    body["messages"][1]["content"] = (question * (1 + missing // len(question)))[:missing]
    return json.dumps(body, separators=(",", ":")).encode()


def read_sample(output: str, peer: str, load: Load, round_number: int, cpu_s: float, errors: str = "") -> Sample:
    """The sample in the last line of a load generator's output. Raises LoadFailed."""
    try:
        said = json.loads(output.strip().splitlines()[-1])
        known = {name: said[name] for name in Sample.__dataclass_fields__ if name in said}
        return Sample(peer=peer, load=load, round=round_number, cpu_s=cpu_s, **known)
    except (IndexError, TypeError, ValueError) as error:
        raise LoadFailed(f"{load} on {peer}: {error}\n{(output + errors)[-1000:]}") from None


def check_answers(peer: Peer, *, has_streams: bool) -> None:
    """One whole answer, and one stream if the peer gets streams, say what they must. Raises LoadFailed."""
    headers = dict(line.split(": ", 1) for line in peer.headers)
    with httpx.Client(base_url=peer.server.url, headers=headers, timeout=30) as client:
        for stream in (False, True) if has_streams else (False,):
            body = build_request(stream=stream)
            answer = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
            num_named = answer.text.count(f'"model":"{MODEL}"')
            if answer.status_code != 200 or num_named != (NUM_EVENTS if stream else 1):
                raise LoadFailed(
                    f"{peer.name} answered {answer.status_code} with the model's name {num_named} times:\n"
                    + answer.text[:1000]
                )
