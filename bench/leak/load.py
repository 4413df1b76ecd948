"""Everything that a gateway is asked, well and badly: what comes next follows from the seed.

Answers are checked by their status. Whatever is said twice and differs gets a choice, as people would give it.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench.leak.client import Client, build_request

WEIGHTS = {
    "single": 34, "stream": 22, "pair": 8, "paired_stream": 6, "refused": 14, "aborted": 12, "not_http": 2, "other": 2,
}  # fmt: skip
_CHAT = "/v1/chat/completions"
_COMPARE = "X-Prefloop-Compare: always"
_QUESTION = "Where does the river bend, and how often, before it meets the old bridge? " * 4
_NUM_USERS = 500
_TIMEOUT_S = 60.0


class UnexpectedAnswer(Exception):
    """A status that this kind of request must not get."""


class Load:
    """`counts`: requests by kind, and choices; `failures`: what went wrong, by kind and reason."""

    def __init__(self, port: int, keys: list[str], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._port = port
        self._keys = keys
        self._rng = random.Random(seed)

    async def run(self, num_requests: int, num_connections: int) -> None:
        """Ask over and over on each connection; returns once all are answered or aborted, and closed."""
        left = iter(range(num_requests))
        await asyncio.gather(*(self._work(left) for _ in range(num_connections)))

    async def _work(self, left: Iterator[int]) -> None:
        client = Client(self._port)
        for _ in left:
            kind = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            self.counts[kind] += 1
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await getattr(self, f"ask_{kind}")(client)
            except (UnexpectedAnswer, TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
                self.failures[f"{kind}: {type(error).__name__}: {error}"] += 1
                client.abort()
        client.abort()

    # One kind of request each

    async def ask_single(self, client: Client) -> None:
        await self._ask(client, 200)

    async def ask_stream(self, client: Client) -> None:
        body = await self._ask(client, 200, stream=True, max_tokens=self._rng.choice([2, 8, 30]))
        if not body.endswith(b"data: [DONE]\n\n"):
            raise UnexpectedAnswer("a stream without an end")

    async def ask_pair(self, client: Client) -> None:
        body = json.loads(await self._ask(client, 200, _COMPARE, self._name_user()))
        await self._choose(client, body.get("comparison"))

    async def ask_paired_stream(self, client: Client) -> None:
        body = await self._ask(client, 200, _COMPARE, self._name_user(), stream=True, max_tokens=6)
        events = [json.loads(event[6:]) for event in body.split(b"\n\n")[:-2]]
        await self._choose(client, next((e["comparison"] for e in reversed(events) if "comparison" in e), None))

    async def ask_refused(self, client: Client) -> None:
        ask = self._rng.choice([self._ask_wrong_model, self._ask_broken_json, self._ask_without_key, self._ask_nowhere])
        await ask(client)

    async def ask_aborted(self, client: Client) -> None:
        headers = [_COMPARE] if self._rng.random() < 0.4 else []
        body = self._build_body(stream=self._rng.random() < 0.7, max_tokens=400)
        data = build_request(_CHAT, self._rng.choice(self._keys), json.dumps(body).encode(), *headers)
        if self._rng.random() < 0.3:
            data = data[: self._rng.randrange(len(data))]
            await client.send(data or b"P")
        else:
            await client.send(data)
            if self._rng.random() < 0.7:
                await client.read_some(self._rng.choice([1, 100, 2000]) if body["stream"] else 1)
        client.abort()

    async def ask_not_http(self, client: Client) -> None:
        garbage = [
            b"hello\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /\x00 HTTP/1.1\r\n\r\n",
        ]
        await client.send(self._rng.choice(garbage))
        self._expect(400, *await client.read_answer())

    async def ask_other(self, client: Client) -> None:
        path = self._rng.choice(["/livez", "/v1/models", "/nowhere"])
        await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._keys[0]}\r\n\r\n".encode())
        self._expect(404 if path == "/nowhere" else 200, *await client.read_answer())

    # What they are made of

    async def _ask(self, client: Client, status: int, *headers: str, **fields: Any) -> bytes:
        body = self._build_body(**fields)
        return self._expect(status, *await client.ask(_CHAT, self._rng.choice(self._keys), body, *headers))

    async def _ask_wrong_model(self, client: Client) -> None:
        await self._ask(client, 404, model="nobody")

    async def _ask_broken_json(self, client: Client) -> None:
        await client.send(build_request(_CHAT, self._keys[0], b'{"model":"default","messages":[' + b"[" * 100))
        self._expect(400, *await client.read_answer())

    async def _ask_without_key(self, client: Client) -> None:
        self._expect(401, *await client.ask(_CHAT, f"pl_{self._rng.randrange(10**9)}_x", self._build_body()))

    async def _ask_nowhere(self, client: Client) -> None:
        self._expect(404, *await client.ask(f"/v1/{self._rng.randrange(10**9)}", self._keys[0], {}))

    async def _choose(self, client: Client, comparison: dict[str, Any] | None) -> None:
        if comparison is None:
            return
        self.counts["choices"] += 1
        body = {"preferred": self._rng.choice(["first", "second", "tie"]), "token": comparison["token"]}
        self._expect(200, *await client.ask(f"/v1/comparisons/{comparison['id']}/choice", "none", body))

    def _build_body(self, **fields: Any) -> dict[str, Any]:
        return {"model": "default", "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 64, **fields}

    def _name_user(self) -> str:
        return f"X-Prefloop-User: user-{self._rng.randrange(_NUM_USERS)}"

    def _expect(self, expected: int, status: int, body: bytes) -> bytes:
        if status != expected:
            raise UnexpectedAnswer(f"{status} instead of {expected}: {body[:200]!r}")
        return body
