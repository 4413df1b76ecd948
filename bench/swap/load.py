"""The load: connections that ask without a pause, singles and pairs, whole and streamed, pinned and not.

Every answer is judged by what it says against the checkpoint that the gateway names; of pairs, which are blind, only that
it is one that serves now (what each candidate was is read from the database at the end).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.swap.sentences import QUESTIONS, SENTENCES, judge

NUM_USERS = 400
MAX_TOKENS = 64
TIMEOUT_S = 120.0
_MAX_EXAMPLES = 20
# kind -> share of requests
MIX = {"single": 0.2, "stream": 0.3, "pair": 0.2, "pair stream": 0.2, "pinned": 0.1}


@dataclass
class Tally:
    """What came of the requests; `longest_gap_s` is the longest time in which no connection received anything.

    last_begun_at: by checkpoint, when the newest request began that it alone answered unasked; of the monotonic clock.
    """

    requests: Counter[str] = field(default_factory=Counter)
    by_checkpoint: Counter[str] = field(default_factory=Counter)
    last_begun_at: dict[str, float] = field(default_factory=dict)
    failed: int = 0
    truncated: int = 0
    wrong_checkpoint: int = 0
    comparisons: int = 0
    longest_gap_s: float = 0.0
    longest_gap_at: float = 0.0
    examples: list[str] = field(default_factory=list)
    last_at: float | None = None

    @property
    def num_requests(self) -> int:
        return sum(self.requests.values())

    def note_bytes(self) -> None:
        """Something was received by someone."""
        now = time.monotonic()
        if self.last_at is not None and now - self.last_at > self.longest_gap_s:
            self.longest_gap_s, self.longest_gap_at = now - self.last_at, time.time()
        self.last_at = now

    def note_failure(self, what: str, problem: str) -> None:
        self.failed += 1
        self.keep_example(f"failed {what}: {problem}")

    def note_text(self, what: str, text: str, checkpoint: str) -> None:
        """One whole answer that the checkpoint is said to have given."""
        self.by_checkpoint[checkpoint] += 1
        kind = judge(text, checkpoint)
        if kind == "truncated":
            self.truncated += 1
        elif kind == "wrong":
            self.wrong_checkpoint += 1
        if kind != "right":
            self.keep_example(f"{kind} {what} of {checkpoint}: {text!r}")

    def keep_example(self, line: str) -> None:
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"{time.time():.3f} {line}")


class Load:
    """`num_connections` loops against the gateway until `stop`. `pinned` is the checkpoint asked for by its name."""

    def __init__(self, url: str, key: str, num_connections: int, seed: int = 0) -> None:
        self.tally = Tally()
        self.pinned: str | None = None
        self._url, self._num_connections = url, num_connections
        self._headers = {"authorization": f"Bearer {key}"}
        self._rng = random.Random(seed)
        self._stopping = False

    def stop(self) -> None:
        """Begin no more requests; `run` returns when those under way have ended."""
        self._stopping = True

    async def run(self) -> None:
        """Ask until stopped."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=self._num_connections)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers) as session:
            await asyncio.gather(*(self._ask_for_ever(session) for _ in range(self._num_connections)))

    async def _ask_for_ever(self, session: aiohttp.ClientSession) -> None:
        while not self._stopping:
            [kind] = self._rng.choices(list(MIX), MIX.values())
            if kind == "pinned" and self.pinned is None:
                continue
            self.tally.requests[kind] += 1
            try:
                await self._ask(session, kind)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError) as error:
                self.tally.note_failure(kind, f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.1)

    async def _ask(self, session: aiohttp.ClientSession, kind: str) -> None:
        is_stream = "stream" in kind or (kind == "pinned" and self._rng.random() < 0.5)
        body: dict[str, Any] = {
            "model": self.pinned if kind == "pinned" else "default",
            "messages": [{"role": "user", "content": self._rng.choice(QUESTIONS)}],
            "max_tokens": MAX_TOKENS,
            "top_k": 1,  # greedy, and still paired
            "stream": is_stream,
        }
        headers = {"x-prefloop-user": f"user-{self._rng.randrange(NUM_USERS)}"}
        if kind.startswith("pair"):
            headers["x-prefloop-compare"] = "always"
        begun_at = time.monotonic()
        async with session.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
            if answer.status != 200:
                self.tally.note_failure(kind, f"{answer.status} {(await answer.text())[:200]}")
                return
            named = answer.headers.get("x-prefloop-checkpoint", "")
            shown = await (self._read_stream(answer) if is_stream else self._read_whole(answer))
        if kind in ("single", "stream"):
            self.tally.last_begun_at[named] = max(begun_at, self.tally.last_begun_at.get(named, 0.0))
        self._check(kind, body["model"], named, shown)

    async def _read_whole(self, answer: aiohttp.ClientResponse) -> dict[str, Any]:
        data = json.loads(await answer.read())
        self.tally.note_bytes()
        choices = {
            choice["index"]: (choice["message"]["content"], choice["finish_reason"]) for choice in data["choices"]
        }
        return {"model": data["model"], "choices": choices, "comparison": data.get("comparison")}

    async def _read_stream(self, answer: aiohttp.ClientResponse) -> dict[str, Any]:
        """The same of a stream; one without its end mark has no finish reasons. Raises ValueError for an error event."""
        texts: dict[int, str] = {}
        reasons: dict[int, str | None] = {}
        shown: dict[str, Any] = {"model": None, "comparison": None}
        has_ended = False
        async for line in answer.content:
            self.tally.note_bytes()
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                has_ended = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(str(event["error"]))
            shown["model"] = event["model"]
            shown["comparison"] = event.get("comparison") or shown["comparison"]
            for choice in event["choices"]:
                index = choice["index"]
                texts[index] = texts.get(index, "") + (choice["delta"].get("content") or "")
                reasons[index] = choice.get("finish_reason") or reasons.get(index)
        shown["choices"] = {index: (text, reasons[index] if has_ended else None) for index, text in texts.items()}
        return shown

    def _check(self, kind: str, model: str, named: str, shown: dict[str, Any]) -> None:
        tally = self.tally
        if not shown["choices"]:
            tally.note_failure(kind, "no choice")
            return
        if any(reason != "stop" for _, reason in shown["choices"].values()):
            tally.truncated += 1
            tally.keep_example(f"truncated {kind}: {shown['choices']}")
            return
        if shown["model"] != model or (kind == "pinned" and named != model):
            tally.wrong_checkpoint += 1
            tally.keep_example(f"{kind}: asked {model}, got {shown['model']} of {named}")
        if kind.startswith("pair"):
            tally.comparisons += shown["comparison"] is not None
            for text, _ in shown["choices"].values():
                if text.strip() not in SENTENCES:
                    tally.wrong_checkpoint += 1
                    tally.keep_example(f"{kind}: {text!r}")
            return
        tally.note_text(kind, shown["choices"][0][0], named)
