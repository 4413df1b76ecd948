"""The demo's people as clients of a fleet: the official OpenAI client with its default retries, and notes of what it saw.

A request that its client gave up is `failed`; one whose answer had begun to stream when its process was killed is
`interrupted`: no client can repeat it without saying so, and it must have been told by an error that it may repeat. Such a
person asks again. Choices are sent until they are acknowledged.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
import openai
from openai import AsyncOpenAI

from bench.chaos.clients import History
from prefloop.demo.people import STREAMED_SHARE
from prefloop.demo.replies import Reply, ask
from prefloop.demo.tastes import Person, Tastes, choose, draw_people

_TIMEOUT_S = 300.0  # of one attempt: two cores carry three engines
_RETRY_S = 0.3
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
_BROKEN = (openai.APIConnectionError, httpx.TransportError)


@dataclass
class Notes:
    """What the people saw. `interrupted`: (when, error) of streams that broke after a kill; `failed`: of all other failures."""

    requests: int = 0
    streams: int = 0
    failed: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    refused_choices: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class People:
    """So many seats, taken in turn by the demo's people. find_kill: whether a process was killed at about that time."""

    def __init__(
        self,
        url: str,
        key: str,
        tastes: Tastes,
        history: History,
        find_kill: Callable[[float], str | None],
        *,
        seats: int,
        pause_s: float,
        seed: int,
    ) -> None:
        self.notes, self.history = Notes(), history
        self._url, self._key, self._tastes, self._find_kill = url, key, tastes, find_kill
        self._seats, self._pause_s, self._seed = seats, pause_s, seed
        self._questions = tastes.world.people_questions()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask no more; `run` returns once every choice that was sent is acknowledged."""
        self._stopping.set()

    async def run(self) -> None:
        """Ask and choose until stopped."""
        waiting = deque(draw_people(self._tastes, self._seed))
        async with (
            AsyncOpenAI(base_url=f"{self._url}/v1", api_key=self._key, timeout=_TIMEOUT_S) as client,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http,
            asyncio.TaskGroup() as group,
        ):
            for number in range(self._seats):
                group.create_task(self._sit(client, http, waiting, random.Random(f"{self._seed}-seat-{number}")))

    async def _sit(
        self, client: AsyncOpenAI, http: aiohttp.ClientSession, waiting: deque[Person], rng: random.Random
    ) -> None:
        while not self._stopping.is_set():
            person = waiting.popleft()
            await self._take_turn(client, http, person)
            waiting.append(person)
            try:
                await asyncio.wait_for(self._stopping.wait(), rng.expovariate(1 / self._pause_s))
            except TimeoutError:
                continue

    async def _take_turn(self, client: AsyncOpenAI, http: aiohttp.ClientSession, person: Person) -> None:
        question = person.rng.choice(self._questions)
        is_stream = person.rng.random() < STREAMED_SHARE
        reply = await self._ask(client, question, person.name, is_stream=is_stream)
        if reply is None or reply.comparison is None or set(reply.texts) != {0, 1}:
            self.notes.counts["single" if reply is not None else "unanswered"] += 1
            return
        valued = [person.value_answer(self._tastes, question, reply.texts[i], i in reply.cut)[1] for i in (0, 1)]
        await self._choose(http, reply.comparison, choose(*valued, self._tastes.people, person.rng))

    async def _ask(self, client: AsyncOpenAI, question: str, name: str, *, is_stream: bool) -> Reply | None:
        """The reply, of a second request where a kill broke the first one's stream; None if it failed."""
        notes = self.notes
        while True:
            notes.requests += 1
            notes.streams += is_stream
            try:
                reply = await ask(client, "default", question, name, is_stream, self._tastes.world.manners)
                if reply.texts.get(0):
                    return reply
                self._note_failure("the answer is empty", is_stream=is_stream)
            except Exception as error:  # a broken stream raises what its transport raises
                said = f"{type(error).__name__}: {error}"[:200]
                kill = self._find_kill(time.time())
                if is_stream and kill is not None and has_begun(error):
                    notes.interrupted.append(f"{kill}: {said}")
                    continue
                self._note_failure(said, is_stream=is_stream)
            return None

    def _note_failure(self, said: str, *, is_stream: bool) -> None:
        what = f"{'stream' if is_stream else 'whole'}: {said}"
        self.notes.failed.append(what)
        print(f"FAILED  {what}", flush=True)

    async def _choose(self, http: aiohttp.ClientSession, comparison: Any, preferred: str) -> None:
        name = str(comparison["id"])
        self.history.note_sent(name, preferred)
        body = {"preferred": preferred, "token": comparison["token"]}
        while True:
            try:
                async with http.post(f"{self._url}/v1/comparisons/{name}/choice", json=body) as answer:
                    status, said = answer.status, await answer.text()
            except _FAILURES as error:
                status, said = 599, type(error).__name__
            if status == 200:
                self.history.note_acknowledged(name, preferred)
                return
            if status < 500 and status != 429:
                self.notes.refused_choices.append(f"{status}: {said}"[:200])
                return
            self.notes.counts["choices sent again"] += 1
            await asyncio.sleep(_RETRY_S)


def has_begun(error: Exception) -> bool:
    """Whether a stream broke: the client's transport, or an error of the gateway inside the stream, which has no status."""
    return isinstance(error, _BROKEN) or (
        isinstance(error, openai.APIError) and not isinstance(error, openai.APIStatusError)
    )
