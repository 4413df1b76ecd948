"""What engines should not say, and apps should not send, in pairs: refused or kept in order, and never half stored."""

import json
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web
from conftest import QUESTION, Running

from feedback.choices import comparisons

PAIR = {"x-prefloop-compare": "always", "x-prefloop-user": "ann"}
URL = "/v1/chat/completions"


def say(gateway: Running, *bodies: str) -> None:
    """Every answer has this body from now on, or these events; SEED stands for the request's seed."""

    async def answer(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        told = [text.replace("SEED", str(body["seed"])) for text in bodies]
        if not body.get("stream"):
            return web.Response(text=told[0], content_type="application/json")
        events = "".join(f"data: {event}\n\n" for event in (*told, "[DONE]"))
        return web.Response(text=events, content_type="text/event-stream")

    gateway.engine._answer = answer  # type: ignore[method-assign]


def chunk(delta: str, finish: str | None = None, rest: str = "") -> str:
    return f'{{"id":"x","choices":[{{"index":0,"delta":{delta},"finish_reason":{json.dumps(finish)}}}]{rest}}}'


async def ask(gateway: Running, **fields: Any) -> tuple[int, str]:
    async with gateway.http.post(
        gateway.url + URL, json={**QUESTION, **fields}, headers={**gateway.auth, **PAIR}
    ) as answer:
        return answer.status, await answer.text()


def read_chunks(stream: str) -> list[dict[str, Any]]:
    *events, end, rest = stream.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def count_rows(gateway: Running) -> int:
    with gateway.context.database.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(comparisons)).scalar_one()


@pytest.mark.parametrize(
    "events",
    [
        ([("a", None), ("b", "stop"), ("c", "length")]),
        ([("a", None), ("b", "stop"), ("c", None), ("d", None)]),
        ([("a", "stop"), ("b", None), ("c", "stop"), ("d", None)]),
    ],
)
async def test_what_comes_after_a_finish_arrives_in_its_order_and_is_what_is_stored(
    gateway: Running, events: list[tuple[str, str | None]]
) -> None:
    say(gateway, chunk('{"content":"SEED "}'), *(chunk(f'{{"content":"{text}"}}', finish) for text, finish in events))
    _, stream = await ask(gateway, stream=True)
    chunks = read_chunks(stream)
    said = "".join(text for text, _ in events)
    texts = ["", ""]
    for each in chunks:
        texts[each["choices"][0]["index"]] += each["choices"][0]["delta"]["content"]
    assert sorted(text.partition(" ")[2] for text in texts) == [said, said]
    [carrier] = [number for number, each in enumerate(chunks) if "comparison" in each]
    assert [n for n, each in enumerate(chunks) if each["choices"][0]["finish_reason"]][-1] == carrier
    with gateway.context.database.connect() as connection:
        stored = json.loads(connection.execute(sa.select(comparisons.c.body)).scalar_one())
    assert [stored["first"]["text"], stored["second"]["text"]] == texts


ODD = [
    '{"content":["SEED"]}',
    '{"content":{"text":"SEED"}}',
    '{"content":"SEED","tool_calls":7}',
    '{"content":"SEED","tool_calls":[{"index":"first"}]}',
    '{"content":"SEED","tool_calls":[{"function":{"name":"f","arguments":{}}}]}',
    '{"content":"\\ud800 SEED"}',
    "7",
]
ODD_RESTS = [
    ',"usage":"many"',
    ',"usage":{"prompt_tokens":"five"}',
    ',"usage":{"prompt_tokens":-5}',
    ',"usage":{"completion_tokens":1e300}',
    ',"x":NaN',
]


@pytest.mark.parametrize(
    ("message", "rest"), [*((odd, "") for odd in ODD), *(('{"content":"SEED"}', r) for r in ODD_RESTS)]
)
async def test_what_cannot_be_read_is_an_error_and_leaves_no_row(gateway: Running, message: str, rest: str) -> None:
    say(gateway, f'{{"id":"x","choices":[{{"index":0,"message":{message},"finish_reason":"stop"}}]{rest}}}')
    status, body = await ask(gateway)
    assert (status, json.loads(body)["error"]["code"]) == (502, "unreadable_answer")
    say(gateway, chunk(message, "stop", rest))
    status, body = await ask(gateway, stream=True)
    assert (status, read_chunks(body)[-1]["error"]["code"]) == (200, "engine_lost")
    assert count_rows(gateway) == 0
    counters = gateway.context.deployment.counters
    assert counters.num_in_flight == 0 and counters.comparisons == 0


@pytest.mark.parametrize(
    "choices", ["7", '[{"message":7}]', "[{}]", "[7]", "[]", "null", '[{"message":{}},{"message":{}}]']
)
async def test_an_answer_without_one_message_is_none(gateway: Running, choices: str) -> None:
    say(gateway, f'{{"id":"x","choices":{choices}}}')
    assert (await ask(gateway))[0] == 502
    assert count_rows(gateway) == 0


async def test_what_the_reader_does_not_know_stays_as_it_was(gateway: Running) -> None:
    logprobs = '{"content":[{"token":"a","logprob":-1.0000000000000000001e0,"big":123456789012345678901234567890}]}'
    message = '{"role":"assistant","content":"SEED","reasoning":[ 1.50 ]}'
    say(gateway, f'{{"id":"x","choices":[{{"message":{message},"logprobs":{logprobs},"finish_reason":"stop"}}]}}')
    status, body = await ask(gateway)
    assert status == 200 and body.count(logprobs) == 2 and body.count('"reasoning":[ 1.50 ]') == 2
    assert "comparison" in json.loads(body)


@pytest.mark.parametrize(
    "message",
    [
        '{"role":"user","content":"Hi","x":1e999}',
        '{"role":"user","content":"Hi","x":' + "[" * 300 + "]" * 300 + "}",
    ],
)
@pytest.mark.parametrize("is_stream", ["true", "false"])
async def test_messages_that_cannot_be_stored_are_answered_once(gateway: Running, message: str, is_stream: str) -> None:
    body = f'{{"model":"default","stream":{is_stream},"messages":[{message}]}}'
    async with gateway.http.post(gateway.url + URL, data=body, headers={**gateway.auth, **PAIR}) as answer:
        assert answer.status == 200
        assert "comparison" not in await answer.text()
    assert len(gateway.engine.requests) == 1
    assert gateway.context.deployment.counters.not_paired == {"messages": 1}
    assert count_rows(gateway) == 0


@pytest.mark.parametrize("spelling", ['"true"', '"t"', '"Y"', "1", "1.0", '"on"', '"T\\u0052UE"'])
async def test_a_pair_is_streamed_however_stream_is_spelt(gateway: Running, spelling: str) -> None:
    body = f'{{"model":"default","stream":{spelling},"messages":[{{"role":"user","content":"Hi"}}]}}'
    async with gateway.http.post(gateway.url + URL, data=body, headers={**gateway.auth, **PAIR}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert sum("comparison" in each for each in read_chunks(await answer.text())) == 1


@pytest.mark.parametrize(
    "fields", ['"temperature":"0"', '"temperature":false', '"n":"2"', '"seed":"7"', '"temperature":"-0e5"']
)
async def test_own_sampling_is_never_paired_however_it_is_spelt(gateway: Running, fields: str) -> None:
    body = f'{{"model":"default",{fields},"messages":[{{"role":"user","content":"Hi"}}]}}'
    async with gateway.http.post(gateway.url + URL, data=body, headers={**gateway.auth, **PAIR}) as answer:
        assert answer.status == 200
    assert len(gateway.engine.requests) == 1
