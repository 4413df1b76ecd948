"""Connections that ask the policy without a pause, and what each answer took.

Every other answer is streamed, as the trainer's pace follows first tokens. Requests are never paired: what is measured is
serving, not asking for choices.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from prefloop.demo.worlds.capitals import people_questions

MAX_TOKENS = 48
TIMEOUT_S = 120.0
RETRY_S = 0.5


@dataclass(frozen=True)
class Answered:
    """One request: when it began and ended, in seconds of the monotonic clock, and the tokens of its answer."""

    began_at: float
    ended_at: float
    tokens: int


class Load:
    """`num_connections` loops against the gateway until `stop`."""

    def __init__(self, url: str, key: str, num_connections: int) -> None:
        self.answered: list[Answered] = []
        self.num_failed = 0
        self._url, self._num_connections = url, num_connections
        self._headers = {"authorization": f"Bearer {key}", "x-prefloop-compare": "never"}
        self._questions = itertools.cycle(people_questions())
        self._seeds = itertools.count()
        self._is_stopping = False

    def stop(self) -> None:
        """Begin no more requests; `run` returns when those under way have ended."""
        self._is_stopping = True

    async def run(self) -> None:
        """Ask until stopped."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            await asyncio.gather(*(self._ask_until_stopped(session) for _ in range(self._num_connections)))

    async def _ask_until_stopped(self, session: aiohttp.ClientSession) -> None:
        while not self._is_stopping:
            seed = next(self._seeds)
            body: dict[str, Any] = {
                "model": "default",
                "messages": [{"role": "user", "content": next(self._questions)}],
                "max_tokens": MAX_TOKENS,
                "temperature": 0.7,
                "seed": seed,
            }
            if is_streamed := seed % 2 == 1:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            began_at = time.monotonic()
            try:
                async with session.post(f"{self._url}/v1/chat/completions", json=body) as response:
                    response.raise_for_status()
                    usage = read_last(await response.text()) if is_streamed else await response.json()
                    tokens = usage["usage"]["completion_tokens"]
            except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
                self.num_failed += 1
                await asyncio.sleep(RETRY_S)
                continue
            self.answered.append(Answered(began_at, time.monotonic(), tokens))


def read_last(stream: str) -> dict[str, Any]:
    """The last chunk of a streamed answer, which has its usage. Raises ValueError for a stream without chunks."""
    chunks = [line[6:] for line in stream.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    if not chunks:
        raise ValueError("a stream without chunks")
    last: dict[str, Any] = json.loads(chunks[-1])
    return last
