"""What the gateway records of answers is what learning reads: the ids that the engine wrote, or what its template would write."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import QUESTION, Running, read_said, run_gateway
from msgspec.structs import replace

from gateway.api.signals import _add_shown
from gateway.serving.pairs.candidates import drop_token_ids
from gateway.serving.recording.comparison_lookup import ShownCandidate
from tests.feedback.samples import make_comparison, make_signal
from tests.trainer.tiny import build_tiny_tokenizer
from trainer.text.pairs import make_pair
from trainer.text.signal_rows import make_rated
from trainer.text.transcript import Transcriber

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
TEMPLATE = (  # Qwen2.5's, but for the system message and tools' results, with <|eos|> for <|im_end|>
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n<tools>' }}"
    "{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '\n</tools><|eos|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role != 'assistant' or not message.tool_calls %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|eos|>' + '\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role }}"
    "{%- if message.content %}{{- '\n' + message.content }}{%- endif %}"
    "{%- for tool_call in message.tool_calls %}"
    "{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}"
    '{{- \'\n<tool_call>\n{"name": "\' }}{{- tool_call.name }}{{- \'", "arguments": \' }}'
    "{{- tool_call.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|eos|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"q": "%s"}}\n</tool_call>'
WRITTEN = {
    "A": ("", CALL % "A"),
    "B": ("Let me see.", f"Let me see.\n{CALL % 'B'}"),
}  # what is said, and all that was sampled


def build_tokenizer() -> Any:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZER = build_tokenizer()
PAIR = {"x-prefloop-compare": "always", "x-prefloop-user": "ann"}


def encode(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False).input_ids)


def list_written(body: dict[str, Any]) -> list[tuple[int, ...]]:
    """The ids of the prompt, then of both answers as the engine samples them."""
    text = TOKENIZER.apply_chat_template(
        body["messages"], tools=body["tools"], add_generation_prompt=True, tokenize=False
    )
    return [encode(text), *((*encode(written), 2) for _, written in WRITTEN.values())]


async def call_tool(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
    """An engine that calls a tool, every other time with words before it, as vLLM's tool parser answers."""
    name = "AB"[rank % 2]
    prompt_ids, *written = list_written(body)
    ids = written[rank % 2]
    function = {"name": "look_up", "arguments": json.dumps({"q": name})}
    calls = [{"index": 0, "id": "c", "type": "function", "function": function}]
    said = {"role": "assistant", "content": WRITTEN[name][0] or None, "tool_calls": calls}
    place = "delta" if body.get("stream") else "message"
    choice: dict[str, Any] = {"index": 0, place: said, "finish_reason": "tool_calls"}
    head: dict[str, Any] = {"id": f"x-{rank}", "created": 1, "model": body["model"]}
    if body.get("return_token_ids"):
        choice["token_ids"], head["prompt_token_ids"] = ids, prompt_ids
    usage = {"prompt_tokens": len(prompt_ids), "completion_tokens": len(ids), "total_tokens": 0}
    if not body.get("stream"):
        return web.json_response({**head, "choices": [choice], "usage": usage})
    events = [{**head, "choices": [choice]}, {**head, "choices": [], "usage": usage}]
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return web.Response(text=text, content_type="text/event-stream")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with run_gateway(tmp_path) as running:
        running.engine._answer = call_tool  # type: ignore[method-assign]
        yield running


@pytest.mark.parametrize("is_stream", [False, True])
async def test_answers_that_call_tools_are_learnt_as_they_were_sampled(gateway: Running, is_stream: bool) -> None:
    asked = {**QUESTION, "tools": TOOLS, "stream": is_stream}
    async with gateway.http.post(
        f"{gateway.url}/v1/chat/completions", json=asked, headers={**gateway.auth, **PAIR}
    ) as answer:
        text = await answer.text()
    offered = json.loads(next(line for line in text.replace("data: ", "").splitlines() if '"token"' in line))
    assert (await gateway.choose(offered["comparison"]))[0] == 200
    [choice] = read_said(gateway)
    prompt_ids, *written = list_written(asked)
    for dropped in (False, True):
        if dropped:  # as where the event would have been too large; what old events lack
            choice = replace(choice, comparison=drop_token_ids(choice.comparison))
        pair = make_pair(choice, event_id="e", prompt_key="k", split="train")
        assert sorted(each.text for each in (pair.first, pair.second)) == ["", "Let me see."]
        encoded = Transcriber(TOKENIZER, (2,), 2000).encode_pair(pair)
        assert encoded.prompt == prompt_ids
        assert sorted([encoded.first, encoded.second]) == sorted(written)


async def signal(gateway: Running, completion_id: str) -> None:
    url = f"{gateway.url}/v1/completions/{completion_id}/signal"
    async with gateway.http.post(url, json={"thumb": "up", "index": 0}, headers=gateway.auth) as answer:
        assert answer.status == 200, await answer.text()


async def test_a_thumbs_token_ids_go_before_its_words_do(gateway: Running) -> None:
    comparison = make_comparison(prompt_token_ids=[10**6] * 500, messages=[{"role": "user", "content": "x" * 1000}])
    shown = ShownCandidate(comparison, replace(comparison.first, token_ids=[10**6] * 500))
    signal = make_signal(messages=None, answer=None)
    sizes = []
    for limit in (12_000, 3000, 1500):
        gateway.context.settings.gateway.max_event_bytes = limit
        said = _add_shown(gateway.context, signal, shown)
        assert (said.finish_reason, said.tags) == ("stop", {"domain": "demo"})
        sizes.append((said.token_ids is not None, said.answer))
    assert sizes == [(True, "answer one"), (False, "answer one"), (False, None)]


@pytest.mark.parametrize("is_pair", [True, False], ids=["pair", "single"])
async def test_a_thumb_takes_along_what_was_asked_and_how_it_ended(gateway: Running, is_pair: bool) -> None:
    asked = {"tools": TOOLS, "metadata": {"task": "find"}, "chat_template_kwargs": {"deep": False}}
    shown = await gateway.ask(PAIR if is_pair else {"x-prefloop-user": "ann"}, **asked)
    await signal(gateway, shown["id"])
    [said] = read_said(gateway)
    assert (said.tags, said.chat_template_kwargs, said.finish_reason) == (
        {"task": "find"},
        {"deep": False},
        "tool_calls",
    )
    assert (said.prompt_token_ids is not None, said.token_ids is not None) == (is_pair, is_pair)
    [rated] = make_rated(said, event_id="e", prompt_key="k", split="train")
    encoded = Transcriber(TOKENIZER, (2,), 2000).encode_answer(rated.prompt, rated.answer)
    prompt_ids, *written = list_written({**QUESTION, **asked})
    assert encoded.prompt == prompt_ids
    assert encoded.answer in written
