"""Each client behind the same few verbs, so that one suite of tests says what all of them must see.

They run as an app would run them: no hooks, no patches, no retries (a retry would hide what the gateway did).
"""

import asyncio
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai


@dataclass
class Seen:
    """What a client made of one answer: per choice its text and tool calls (name, arguments)."""

    texts: dict[int, str] = field(default_factory=dict)
    calls: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)
    model: str = ""
    comparison: dict[str, Any] | None = None
    total_tokens: int | None = None

    def take(self, answer: dict[str, Any]) -> "Seen":
        """Add a completion, or one chunk of it."""
        self.model = answer["model"] or self.model
        self.comparison = answer.get("comparison") or self.comparison
        self.total_tokens = (answer.get("usage") or {}).get("total_tokens", self.total_tokens)
        for choice in answer["choices"]:
            index, said = choice["index"], choice.get("message") or choice.get("delta") or {}
            self.texts[index] = self.texts.get(index, "") + (said.get("content") or "")
            for call in said.get("tool_calls") or ():
                self._take_call(index, call)
            if choice.get("finish_reason"):
                self.ends[index] = choice["finish_reason"]
        return self

    def _take_call(self, index: int, call: dict[str, Any]) -> None:
        calls, function = self.calls.setdefault(index, []), call["function"]
        if function.get("name"):
            calls.append((function["name"], function.get("arguments") or ""))
        else:
            name, arguments = calls.pop()
            calls.append((name, arguments + function["arguments"]))


class Refused(Exception):
    """The client raised: the class of its exception, the HTTP status, what it says."""

    def __init__(self, kind: str, status: int | None, message: str, code: str | None) -> None:
        super().__init__(f"{kind} {status}: {message}")
        self.kind, self.status, self.message, self.code = kind, status, message, code

    @classmethod
    def by(cls, error: openai.APIError) -> "Refused":
        kind = next(
            each for each in type(error).__mro__ if each.__module__ == "openai"
        )  # LangChain's own derive from them
        return cls(kind.__name__, getattr(error, "status_code", None), error.message, error.code)


class OpenAIPython:
    """openai-python's asynchronous client."""

    def __init__(self, url: str, key: str) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)

    async def ask(self, body: dict[str, Any], *, is_stream: bool, headers: dict[str, str] | None = None) -> Seen:
        """One answer. Raises Refused."""
        create, seen = self.client.chat.completions.create, Seen()
        try:
            if not is_stream:
                return seen.take((await create(**body, extra_headers=headers)).to_dict())
            async for chunk in await create(**body, stream=True, extra_headers=headers):
                seen.take(chunk.to_dict())
        except openai.APIError as error:
            raise Refused.by(error) from error
        return seen

    async def leave(self, body: dict[str, Any]) -> None:
        """Go away after the first chunk."""
        async with await self.client.chat.completions.create(**body, stream=True) as stream:
            async for _ in stream:
                return


class OpenAINode:
    """openai-node, one process a call."""

    def __init__(self, url: str, key: str, folder: Path) -> None:
        self._url, self._key = url, key
        self._script = Path(shutil.copy(Path(__file__).with_name("ask.js"), folder / "ask.mjs"))

    async def ask(self, body: dict[str, Any], *, is_stream: bool, headers: dict[str, str] | None = None) -> Seen:
        """One answer. Raises Refused."""
        result = await self.run("stream" if is_stream else "whole", body, headers)
        seen = Seen()
        for each in result if is_stream else [result]:
            seen.take(each)
        return seen

    async def leave(self, body: dict[str, Any]) -> None:
        """Go away after the first chunk."""
        assert await self.run("leave", body) >= 1  # what had been read before it left still comes

    async def run(self, call: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
        """One of the calls of ask.js. Raises Refused."""
        process = await asyncio.create_subprocess_exec(
            "node",
            str(self._script),
            env=os.environ | {"BASE_URL": f"{self._url}/v1"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        given = {"call": call, "body": body, "headers": headers or {}, "key": self._key}
        out, problem = await process.communicate(json.dumps(given).encode())
        assert process.returncode == 0, problem.decode()
        said = json.loads(out)
        if "error" in said:
            error = said["error"]
            raise Refused(error["kind"], error["status"], error["message"], error["code"])
        return said["result"]


class LangChain:
    """LangChain's ChatOpenAI. It keeps no top-level fields of an answer: `comparison` is out of its sight."""

    def __init__(self, url: str, key: str) -> None:
        from langchain_openai import ChatOpenAI

        self._model = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model="default", max_retries=0)

    async def ask(self, body: dict[str, Any], *, is_stream: bool, headers: dict[str, str] | None = None) -> Seen:
        """One answer. Raises Refused."""
        fields = {name: value for name, value in body.items() if name not in ("model", "messages")}
        model = self._model.model_copy(update={"model_name": body["model"]}).bind(extra_headers=headers or {}, **fields)
        try:
            if is_stream:
                message = None
                async for chunk in model.astream(body["messages"]):
                    message = chunk if message is None else message + chunk
                return _read_messages([message])
            result = await model.bound.agenerate([_to_langchain(body["messages"])], **model.kwargs)
            return _read_messages([generation.message for generation in result.generations[0]])
        except openai.APIError as error:
            raise Refused.by(error) from error

    async def leave(self, body: dict[str, Any]) -> None:
        """Go away after the first chunk."""
        stream = self._model.astream(body["messages"])
        await anext(stream)
        await stream.aclose()


def _to_langchain(messages: list[dict[str, Any]]) -> list[Any]:
    from langchain_core.messages import convert_to_messages

    return convert_to_messages(messages)


def _read_messages(messages: list[Any]) -> Seen:
    seen = Seen()
    for index, message in enumerate(messages):
        seen.texts[index] = message.content
        if message.tool_calls:
            seen.calls[index] = [(call["name"], json.dumps(call["args"])) for call in message.tool_calls]
        seen.ends[index] = message.response_metadata.get("finish_reason", "")
        seen.model = message.response_metadata.get("model_name", "")
        if message.usage_metadata:
            seen.total_tokens = message.usage_metadata["total_tokens"]
    return seen
