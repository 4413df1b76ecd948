"""What the official clients offer beyond one call: stream helpers, a client without asyncio, request ids, the list of models."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients.adapters import OpenAINode
from tests.clients.conftest import Running
from tests.clients.test_every_client import ASKED, PAIR, WEATHER

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.fixture
def node(gateway: Running, node_folder: Path) -> OpenAINode:
    return OpenAINode(gateway.url, gateway.key, node_folder)


@pytest.mark.parametrize("headers", [{}, PAIR], ids=["single", "pair"])
async def test_the_python_stream_helper_gathers_every_choice(gateway: Running, headers: dict[str, str]) -> None:
    async with gateway.client().chat.completions.stream(**ASKED, extra_headers=headers) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()
    assert [choice.index for choice in completion.choices] == ([0, 1] if headers else [0])
    assert all((choice.message.content or "").startswith("Answer of seed") for choice in completion.choices)


@pytest.mark.parametrize("headers", [{}, PAIR], ids=["single", "pair"])
async def test_the_node_stream_helper_gathers_every_choice(node: OpenAINode, headers: dict[str, str]) -> None:
    completion = await node.run("gathered", ASKED, headers)
    assert [choice["index"] for choice in completion["choices"]] == ([0, 1] if headers else [0])
    assert all(choice["message"]["content"].startswith("Answer of seed") for choice in completion["choices"])


async def test_the_stream_helpers_gather_the_call_of_a_tool(gateway: Running, node: OpenAINode) -> None:
    body: dict[str, Any] = {**ASKED, "tools": [WEATHER]}
    async with gateway.client().chat.completions.stream(**body) as stream:
        completion = await stream.get_final_completion()
    calls = [
        completion.choices[0].message.tool_calls,
        (await node.run("gathered", body))["choices"][0]["message"]["tool_calls"],
    ]
    assert calls[0] is not None
    assert (calls[0][0].function.name, calls[0][0].function.arguments) == ("weather", '{"seed": null}')
    assert calls[1][0]["function"]["arguments"] == '{"seed": null}'


async def test_the_client_without_asyncio_asks_and_streams(gateway: Running) -> None:
    def ask() -> list[str]:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key) as client:
            whole = client.chat.completions.create(**ASKED)
            chunks = client.chat.completions.create(**ASKED, stream=True)
            return [whole.choices[0].message.content or "", "".join(c.choices[0].delta.content or "" for c in chunks)]

    assert [text.strip() for text in await asyncio.to_thread(ask)] == ["Answer of seed None."] * 2


async def test_answers_and_refusals_carry_the_request_id(gateway: Running) -> None:
    client = gateway.client(X_Request_Id="req-mine-1")
    assert (await client.chat.completions.create(**ASKED))._request_id == "req-mine-1"
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(**{**ASKED, "model": "gpt-9"})
    assert refused.value.request_id == "req-mine-1"


async def test_both_clients_list_the_one_model(gateway: Running, node: OpenAINode) -> None:
    assert [model.id for model in (await gateway.client().models.list()).data] == ["default"]
    assert [model["id"] for model in await node.run("models", {})] == ["default"]
