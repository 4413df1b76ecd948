"""What every client sees, the same for all: one choice unless it asks for two, tools, errors, and an end when it leaves."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.clients.adapters import LangChain, OpenAINode, OpenAIPython, Refused
from tests.clients.conftest import Running, lacks, run_gateway, wait_until

ASKED: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "How are you?"}]}
PARAMETERS = {"type": "object", "properties": {"seed": {"type": "integer"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
PAIR = {"X-Prefloop-Compare": "auto"}
NOWHERE = "http://127.0.0.1:9"

pytestmark = pytest.mark.asyncio(loop_scope="package")
both_ways = pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])


class Clients:
    """Makes the client under test, for any address and key."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder

    def make(self, url: str, key: str) -> OpenAIPython | OpenAINode | LangChain:
        if self.name == "openai-node":
            return OpenAINode(url, key, self._folder)
        return (LangChain if self.name == "langchain" else OpenAIPython)(url, key)


@pytest.fixture(params=["openai-python", "openai-node", "langchain"])
def clients(request: pytest.FixtureRequest, tmp_path: Path) -> Clients:
    if request.param == "openai-node":
        return Clients(request.param, request.getfixturevalue("node_folder"))
    if request.param == "langchain" and find_spec("langchain_openai") is None:
        lacks("no LangChain: pip install langchain-openai")
    return Clients(request.param, tmp_path)


@pytest.fixture
def client(clients: Clients, gateway: Running) -> OpenAIPython | OpenAINode | LangChain:
    return clients.make(gateway.url, gateway.key)


@both_ways
async def test_an_answer_comes_under_the_alias(client: Any, gateway: Running, is_stream: bool) -> None:
    seen = await client.ask(ASKED, is_stream=is_stream)
    assert seen.texts[0].strip() == "Answer of seed None."
    assert (seen.model, seen.ends) == ("default", {0: "stop"})
    assert gateway.engine.requests[0]["model"].startswith("c-000000-")


@both_ways
async def test_who_knows_nothing_of_comparisons_always_sees_one_choice(
    client: Any, gateway: Running, is_stream: bool
) -> None:
    for turn in range(4):  # by a key that permits pairs, at a gateway that asks whenever it may
        seen = await client.ask({**ASKED, "user": f"user-{turn}"}, is_stream=is_stream)
        assert list(seen.texts) == [0]
        assert seen.comparison is None
    assert len(gateway.engine.requests) == 4


@both_ways
async def test_who_asks_for_two_sees_two_and_may_choose(client: Any, gateway: Running, is_stream: bool) -> None:
    seen = await client.ask(ASKED, is_stream=is_stream, headers=PAIR)
    if isinstance(client, LangChain) and is_stream:  # it adds the chunks of all choices up to one message
        assert sum(text.count("Answer") for text in seen.texts.values()) == 2
        return
    first, second = (seen.texts[index].strip() for index in (0, 1))
    assert first != second and first.startswith("Answer of seed ") and second.startswith("Answer of seed ")
    assert seen.ends[0] == "stop"
    if not isinstance(client, LangChain):
        assert seen.ends == {0: "stop", 1: "stop"}
        assert seen.comparison is not None
        status, _ = await gateway.choose(seen.comparison, preferred="second")
        assert status == 200


@both_ways
async def test_tools_are_called_and_their_results_answered(client: Any, is_stream: bool) -> None:
    seen = await client.ask({**ASKED, "tools": [WEATHER]}, is_stream=is_stream)
    assert seen.calls == {0: [("weather", '{"seed": null}')]}
    assert seen.ends == {0: "tool_calls"}
    function = {"name": "weather", "arguments": "{}"}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    told = {"role": "tool", "tool_call_id": "c1", "content": "22 degrees"}
    messages = [*ASKED["messages"], called, told]
    seen = await client.ask({**ASKED, "messages": messages, "tools": [WEATHER]}, is_stream=is_stream)
    assert seen.texts[0].strip() == "Answer of seed None."
    assert seen.calls == {}


async def test_two_answers_may_be_calls_of_tools(client: Any) -> None:
    seen = await client.ask({**ASKED, "tools": [WEATHER]}, is_stream=False, headers=PAIR)
    assert sorted(seen.calls) == [0, 1]
    assert seen.calls[0] != seen.calls[1]


async def test_a_streams_usage_comes_if_asked_for(client: Any) -> None:
    body = {**ASKED, "stream_options": {"include_usage": True}}
    assert (await client.ask(body, is_stream=True)).total_tokens == 9


@pytest.mark.parametrize(
    ("scope", "model", "compare", "kind", "status"),
    [
        ("app", "gpt-9", "never", "NotFoundError", 404),
        ("app", "default", "perhaps", "BadRequestError", 400),
        ("chooser", "default", "never", "PermissionDeniedError", 403),
        (None, "default", "never", "AuthenticationError", 401),
    ],
)
@both_ways
async def test_refusals_become_the_clients_own_exceptions(
    clients: Clients,
    gateway: Running,
    scope: str | None,
    model: str,
    compare: str,
    kind: str,
    status: int,
    is_stream: bool,
) -> None:
    client = clients.make(gateway.url, "pl_wrong_key" if scope is None else await gateway.make_key(scope))
    with pytest.raises(Refused) as refused:
        await client.ask({**ASKED, "model": model}, is_stream=is_stream, headers={"X-Prefloop-Compare": compare})
    assert (refused.value.kind, refused.value.status) == (kind, status)
    assert not gateway.engine.requests


@both_ways
async def test_the_engines_refusal_reaches_the_client(client: Any, gateway: Running, is_stream: bool) -> None:
    gateway.engine.fail_ranks = {0}
    with pytest.raises(Refused) as refused:
        await client.ask(ASKED, is_stream=is_stream)
    assert (refused.value.kind, refused.value.status) == ("BadRequestError", 400)
    assert "default cannot do that" in refused.value.message


async def test_an_engine_that_is_away_is_a_server_error(clients: Clients, tmp_path: Path) -> None:
    async with run_gateway(tmp_path, connect_wait_s=0.2) as gateway:
        await gateway.engine_runner.cleanup()
        with pytest.raises(Refused) as refused:
            await clients.make(gateway.url, gateway.key).ask(ASKED, is_stream=False)
    assert (refused.value.kind, refused.value.status) == ("InternalServerError", 503)


async def test_a_gateway_that_is_away_is_a_connection_error(clients: Clients) -> None:
    with pytest.raises(Refused) as refused:
        await clients.make(NOWHERE, "pl_x_y").ask(ASKED, is_stream=False)
    assert refused.value.kind == "APIConnectionError"


async def test_a_stream_that_breaks_raises(client: Any, gateway: Running) -> None:
    gateway.engine.break_after = 3
    with pytest.raises(Refused, match="stopped in the middle") as refused:
        await client.ask(ASKED, is_stream=True)
    assert refused.value.kind == "APIError"


async def test_who_leaves_in_mid_stream_stops_the_engine(client: Any, gateway: Running) -> None:
    gateway.engine.num_words = 100_000
    await client.leave(ASKED)
    await wait_until(lambda: gateway.engine.num_aborted == 1)
    gateway.engine.num_words = None
    assert (await client.ask(ASKED, is_stream=True)).ends == {0: "stop"}
