"""The clients: they ask for pairs, choose, and send every choice until it is acknowledged. Their notes are the truth.

What was sent is noted before it is sent, what was acknowledged when the answer is read. Some choices are sent again,
some contradicted: the first must be answered as before, the second refused. They know nothing of the gateway's tables.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from prefloop.demo.worlds.capitals import STYLES, classify, people_questions

NUM_USERS = 300
TIMEOUT = aiohttp.ClientTimeout(total=20)
SLIPS = {"skip": 0.04, "tie": 0.04, "both_bad": 0.02, "other": 0.05}  # shares; other: the answer that is liked less
AGAIN_SHARE, CONTRADICTED_SHARE = 0.05, 0.03
_LIKED = {style: len(STYLES) - rank for rank, style in enumerate(STYLES)}
_RETRY_S = 0.25
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError)


@dataclass
class History:
    """What the clients sent and heard: comparison -> preferred. Kept in memory and, line by line, in a file."""

    path: Path
    sent: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note_sent(self, comparison: str, preferred: str) -> None:
        self.sent[comparison] = preferred
        self._write("sent", comparison, preferred)

    def note_acknowledged(self, comparison: str, preferred: str) -> None:
        self.acknowledged[comparison] = preferred
        self._write("acknowledged", comparison, preferred)

    def note_violation(self, text: str) -> None:
        self.violations.append(text)
        self._write("violation", text, "")

    def _write(self, what: str, comparison: str, preferred: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([time.time(), what, comparison, preferred]) + "\n")


class Clients:
    """`num` clients of one gateway, from `run` until `stop`. think_s: mean pause between two questions of one client."""

    def __init__(self, url: str, key: str, history: History, *, num: int, think_s: float, seed: int) -> None:
        self.history = history
        self._url, self._num, self._think_s, self._seed = url, num, think_s, seed
        self._headers = {"authorization": f"Bearer {key}", "x-prefloop-compare": "always"}
        self._questions = people_questions()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask no more. `run` returns once every choice that was sent is acknowledged."""
        self._stopping.set()

    async def run(self) -> None:
        """Ask and choose until stopped."""
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, asyncio.TaskGroup() as group:
            for number in range(self._num):
                group.create_task(self._work(session, random.Random(f"{self._seed}-client-{number}")))

    async def choose_some(self, num: int) -> None:
        """So many further decisive choices, acknowledged when this returns."""
        rng = random.Random(f"{self._seed}-closing")
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            done = 0
            while done < num:
                done += await self._ask_and_choose(session, rng, is_decisive=True)

    async def _work(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        while not self._stopping.is_set():
            await self._ask_and_choose(session, rng)
            try:
                await asyncio.wait_for(self._stopping.wait(), rng.expovariate(1 / self._think_s))
            except TimeoutError:
                continue

    async def _ask_and_choose(
        self, session: aiohttp.ClientSession, rng: random.Random, *, is_decisive: bool = False
    ) -> bool:
        """Whether a choice was acknowledged. A question that fails is no promise broken, and is asked no more."""
        question = rng.choice(self._questions)
        body = {"model": "default", "messages": [{"role": "user", "content": question}], "max_tokens": 32}
        headers = {**self._headers, "x-prefloop-user": f"user-{rng.randrange(NUM_USERS)}"}
        try:
            async with session.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
                shown = await answer.json() if answer.status == 200 else None
                self.history.counts[f"completions {answer.status}"] += 1
        except _FAILURES:
            self.history.counts["completions failed"] += 1
            shown = None
        if shown is None or "comparison" not in shown:
            self.history.counts["not asked"] += 1
            await asyncio.sleep(_RETRY_S)
            return False
        first, second = (choice["message"]["content"] for choice in shown["choices"])
        preferred = judge(question, first, second, rng, is_decisive=is_decisive)
        return await self._choose(session, shown["comparison"], preferred, rng)

    async def _choose(
        self, session: aiohttp.ClientSession, comparison: dict[str, Any], preferred: str, rng: random.Random
    ) -> bool:
        """Send until acknowledged; False if the gateway refused for good, which it must never."""
        name = comparison["id"]
        self.history.note_sent(name, preferred)
        while (status := await self._post(session, comparison, preferred)) >= 500:
            self.history.counts["choices sent again"] += 1
            await asyncio.sleep(rng.uniform(_RETRY_S, 4 * _RETRY_S))
        if status != 200:
            self.history.note_violation(f"{status} for the choice of {name}")
            return False
        self.history.note_acknowledged(name, preferred)
        if rng.random() < AGAIN_SHARE:
            self.history.counts["choices repeated"] += 1
            if (status := await self._post(session, comparison, preferred)) not in (200, 503, 599):
                self.history.note_violation(f"{status} for the same choice of {name} again")
        if rng.random() < CONTRADICTED_SHARE:
            self.history.counts["choices contradicted"] += 1
            other = "second" if preferred != "second" else "first"
            if (status := await self._post(session, comparison, other)) not in (409, 503, 599):
                self.history.note_violation(f"{status} for another choice of {name}")
        return True

    async def _post(self, session: aiohttp.ClientSession, comparison: dict[str, Any], preferred: str) -> int:
        """The answer's status; 599 where there was none. A 200 that says something else counts as 200 for nobody."""
        body = {"preferred": preferred, "token": comparison["token"]}
        url = f"{self._url}/v1/comparisons/{comparison['id']}/choice"
        try:
            async with session.post(url, json=body) as answer:
                said = await answer.json()
                if answer.status == 200 and said["preferred"] != preferred:
                    self.history.note_violation(f"{comparison['id']} was acknowledged as {said['preferred']}")
                return answer.status
        except _FAILURES:
            return 599


def judge(question: str, first: str, second: str, rng: random.Random, *, is_decisive: bool = False) -> str:
    """What a client says of two answers: the style that it likes better, but for a few slips."""
    [slip] = rng.choices([*SLIPS, "none"], [*SLIPS.values(), 1 - sum(SLIPS.values())])
    if slip in ("skip", "tie", "both_bad") and not is_decisive:
        return slip
    liked = [_LIKED[classify(question, answer)] for answer in (first, second)]
    if liked[0] == liked[1]:
        return rng.choice(("first", "second")) if is_decisive else "tie"
    return "first" if (liked[0] > liked[1]) != (slip == "other") else "second"
