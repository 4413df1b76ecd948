"""People who ask without a pause and choose by what a scenario says they like: plain clients of the public API."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from prefloop.demo.worlds.capitals import people_questions

NUM_SEATS = 16
MAX_TOKENS = 48
CONSISTENCY = 0.9
PAUSE_S = 0.3


@dataclass
class Tally:
    """failed: requests of which the client got no usable answer; interrupted: streams that broke after their first bytes."""

    requests: int = 0
    failed: int = 0
    interrupted: int = 0
    choices: int = 0
    last_failure: str = ""


class Interrupted(Exception):
    """A stream broke after text had come."""


class Crowd:
    """NUM_SEATS seats, always somebody new on each. `like` says how well an answer is liked; it may be changed while they ask."""

    def __init__(self, url: str, key: str, session: aiohttp.ClientSession) -> None:
        self.tally = Tally()
        self.like: Callable[[str, str], float] = lambda question, text: 0.0
        self._url, self._session = url, session
        self._headers = {"authorization": f"Bearer {key}"}
        self._questions = people_questions()
        self._rng = random.Random(0)
        self._num_people = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as seats:
            for _ in range(NUM_SEATS):
                seats.create_task(self._sit())

    async def _sit(self) -> None:
        while True:
            self._num_people += 1
            person = f"person-{self._num_people}"
            for _ in range(3):
                await self._take_turn(person)
                await asyncio.sleep(self._rng.expovariate(1 / PAUSE_S))

    async def _take_turn(self, person: str) -> None:
        question = self._rng.choice(self._questions)
        self.tally.requests += 1
        try:
            texts, comparison = await self._ask(person, question)
        except Interrupted:
            self.tally.interrupted += 1
            return
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self.tally.failed += 1
            self.tally.last_failure = f"{type(error).__name__}: {error}"
            return
        if comparison is None or set(texts) != {0, 1}:
            return
        worth = [self.like(question, texts[index]) for index in (0, 1)]
        preferred = "tie"
        if worth[0] != worth[1]:
            preferred = "first" if (worth[0] > worth[1]) == (self._rng.random() < CONSISTENCY) else "second"
        body = {"preferred": preferred, "token": comparison["token"]}
        async with self._session.post(f"{self._url}/v1/comparisons/{comparison['id']}/choice", json=body) as answer:
            self.tally.choices += answer.status == 200

    async def _ask(self, person: str, question: str) -> tuple[dict[int, str], dict[str, Any] | None]:
        is_stream = self._rng.random() < 0.5
        body = {
            "model": "default", "messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS,
            "temperature": 0.7, "stream": is_stream,
        }  # fmt: skip
        headers = {**self._headers, "x-prefloop-user": person, "x-prefloop-compare": "auto"}
        async with self._session.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
            if answer.status != 200:
                raise ValueError(f"{answer.status} {(await answer.text())[:200]}")
            if not is_stream:
                data = await answer.json()
                return {one["index"]: one["message"]["content"] for one in data["choices"]}, data.get("comparison")
            return await self._read_stream(answer)

    async def _read_stream(self, answer: aiohttp.ClientResponse) -> tuple[dict[int, str], dict[str, Any] | None]:
        texts: dict[int, str] = {}
        comparison, has_ended = None, False
        try:
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    has_ended = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    break
                comparison = event.get("comparison") or comparison
                for choice in event["choices"]:
                    texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
        except (aiohttp.ClientError, OSError):
            pass
        if not has_ended:
            raise Interrupted if texts else ValueError("a stream without text")
        return texts, comparison
