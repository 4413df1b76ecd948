"""What the playground's chat box may ask, and how it is answered."""

import json
from pathlib import Path

import pytest
from conftest import Running, run_gateway

from gateway.api.playground import build_chat_body

URL = "/playground/chat"
QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}


async def test_a_question_without_a_key_is_answered_as_a_stream(gateway: Running) -> None:
    headers = {"x-prefloop-compare": "always", "x-prefloop-user": "ann", "cookie": "x=y"}
    async with gateway.http.post(gateway.url + URL, json=QUESTION, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        events = (await answer.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert "comparison" in json.loads(events[-3][6:])


async def test_pages_of_other_sites_may_not_ask(gateway: Running) -> None:
    async with gateway.http.post(gateway.url + URL, json=QUESTION, headers={"sec-fetch-site": "cross-site"}) as answer:
        assert answer.status == 403
    assert gateway.engine.requests == []


async def test_the_playground_can_be_turned_off(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, playground=False) as gateway:
        async with gateway.http.post(gateway.url + URL, json=QUESTION) as answer:
            assert answer.status == 404
        async with gateway.http.get(gateway.url + "/", allow_redirects=False) as page:
            assert (page.status, page.headers["location"]) == (307, "/console")


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"messages": []}', b'{"messages": 3}', b"\xff"])
async def test_a_question_must_be_a_conversation_in_json(gateway: Running, raw: bytes) -> None:
    for content_type, status in (("application/json", 400), ("text/plain", 415)):
        async with gateway.http.post(gateway.url + URL, data=raw, headers={"content-type": content_type}) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]["message"]


def test_a_question_becomes_a_streamed_request_for_the_policy_and_nothing_else() -> None:
    raw = b'{"messages": [{"role": "user", "content": "Hi"}], "model": "c-000001", "priority": 1, "n": 9}'
    assert json.loads(build_chat_body(raw, policy="default")) == {**QUESTION, "model": "default", "stream": True}
