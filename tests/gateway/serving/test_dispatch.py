"""Single answers through the public HTTP, with the official client and with raw bytes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from conftest import QUESTION, Running, run_gateway, start_engine, wait_until


async def test_official_client_gets_one_answer_under_the_alias(gateway: Running) -> None:
    answer = await gateway.client().chat.completions.create(**QUESTION)
    assert [choice.index for choice in answer.choices] == [0]
    assert answer.choices[0].message.content == "Answer of seed None."
    assert answer.model == "default"
    assert gateway.engine.requests[0]["model"].startswith("c-000000-")


async def test_official_client_streams_one_answer_under_the_alias(gateway: Running) -> None:
    stream = await gateway.client().chat.completions.create(**QUESTION, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Answer of seed None. "
    assert {chunk.model for chunk in chunks} == {"default"}
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("split_bytes", [1, 7, 64])
async def test_events_split_across_reads_arrive_whole(gateway: Running, split_bytes: int) -> None:
    gateway.engine.split_bytes = split_bytes
    async with gateway.http.post(
        f"{gateway.url}/v1/chat/completions", json={**QUESTION, "stream": True}, headers=gateway.auth
    ) as answer:
        assert answer.content_type == "text/event-stream"
        events = (await answer.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert {json.loads(event[6:])["model"] for event in events[:-2]} == {"default"}


async def test_only_the_model_changes_on_the_way_to_the_engine(gateway: Running) -> None:
    body = (
        b'{ "x_new" : {"model":"inner"}, "model" : "default" ,"messages":[{"role":"user","content":"\\"model\\":1"}]}'
    )
    async with gateway.http.post(f"{gateway.url}/v1/chat/completions", data=body, headers=gateway.auth) as answer:
        assert answer.status == 200
    name = gateway.context.deployment.view.stable or ""
    assert gateway.engine.raw[0] == body.replace(b'"default"', b'"' + name.encode() + b'"')


async def test_only_operators_see_the_checkpoint(gateway: Running) -> None:
    for headers, shown in (
        (gateway.auth, None),
        (gateway.admin, gateway.context.deployment.view.stable),
    ):
        async with gateway.http.post(f"{gateway.url}/v1/chat/completions", json=QUESTION, headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers.get("x-prefloop-checkpoint") == shown


@pytest.mark.parametrize("is_stream", [False, True])
async def test_only_operators_see_which_engine_answered(gateway: Running, is_stream: bool) -> None:
    head = '{"id":"x","model":"c","system_fingerprint":"fp-1","choices":[]}'

    async def answer(*_: Any) -> web.Response:
        if is_stream:
            return web.Response(text=f"data: {head}\n\n" * 3 + "data: [DONE]\n\n", content_type="text/event-stream")
        return web.Response(text=head, content_type="application/json")

    gateway.engine._answer = answer  # type: ignore[method-assign]
    for headers, num_shown in ((gateway.auth, 0), (gateway.admin, 3 if is_stream else 1)):
        body = {**QUESTION, "stream": is_stream}
        for _ in range(2):  # the second takes the short way
            async with gateway.http.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as shown:
                assert (await shown.text()).count("fp-1") == num_shown


async def test_what_kills_an_engine_does_not_reach_it(gateway: Running) -> None:
    for fields in ({"prompt_logprobs": 1}, {"echo": True}):
        with pytest.raises(openai.BadRequestError):
            await gateway.client().chat.completions.create(**QUESTION, extra_body=fields)
    assert gateway.engine.requests == []


async def test_operators_may_ask_a_checkpoint_by_its_id_and_apps_may_not(gateway: Running) -> None:
    name = gateway.context.deployment.view.stable or ""
    answer = await gateway.client(gateway.app.secrets.admin_key).chat.completions.create(**{**QUESTION, "model": name})
    assert answer.model == name
    with pytest.raises(openai.NotFoundError):
        await gateway.client().chat.completions.create(**{**QUESTION, "model": name})


async def test_every_answer_has_a_request_id(gateway: Running) -> None:
    for path in ("/livez", "/nowhere", "/v1/models"):
        async with gateway.http.get(gateway.url + path) as answer:
            assert answer.headers["x-request-id"].startswith("req_")
    async with gateway.http.get(f"{gateway.url}/livez", headers={"x-request-id": "mine-1"}) as answer:
        assert answer.headers["x-request-id"] == "mine-1"


async def test_an_engine_that_restarts_costs_no_request(gateway: Running) -> None:
    await gateway.engine_runner.cleanup()
    pinned = {"model": gateway.context.deployment.view.stable}
    asked = [asyncio.create_task(gateway.ask()) for _ in range(3)]
    asked.append(asyncio.create_task(gateway.ask(gateway.admin, **pinned)))
    await asyncio.sleep(0.3)
    gateway.context.deployment.engines[f"http://127.0.0.1:{gateway.engine_port}"].proven = frozenset()
    asked.append(asyncio.create_task(gateway.ask(gateway.admin, **pinned)))
    assert not any(task.done() for task in asked)
    gateway.engine.adapters.clear()  # it forgot
    gateway.engine_runner, _ = await start_engine(gateway.engine, gateway.engine_port)
    answers = await asyncio.gather(*asked)
    assert [answer["model"] for answer in answers] == ["default"] * 3 + [pinned["model"]] * 2
    assert gateway.context.deployment.counters.failed_requests == 0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_engine_that_dies_before_the_first_byte_costs_no_request(gateway: Running, is_stream: bool) -> None:
    gateway.engine.num_dropped = 2
    gateway.engine.num_500 = 1
    answer = await gateway.client().chat.completions.create(**QUESTION, stream=is_stream)
    if is_stream:
        assert [chunk async for chunk in answer]
    assert len(gateway.engine.requests) == 4


async def test_an_adapter_that_the_engine_forgot_is_loaded_again(gateway: Running) -> None:
    gateway.engine.adapters.clear()
    assert (await gateway.ask())["model"] == "default"
    assert len(gateway.engine.loads) == 2


async def test_a_stream_that_breaks_ends_in_an_error_event(gateway: Running) -> None:
    gateway.engine.break_after = 3
    stream = await gateway.client().chat.completions.create(**QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="stopped in the middle"):
        async for _ in stream:
            pass
    await wait_until(lambda: gateway.context.deployment.counters.failed_requests == 1)
    assert gateway.context.deployment.in_flight(gateway.context.deployment.view.stable or "") == 0


async def test_a_client_that_leaves_stops_the_engine(gateway: Running) -> None:
    gateway.engine.delay_s = 30.0
    task = asyncio.create_task(gateway.ask())
    await wait_until(lambda: len(gateway.engine.requests) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await wait_until(lambda: not gateway.context.deployment.in_flight(gateway.context.deployment.view.stable or ""))
    assert gateway.context.deployment.counters.failed_requests == 0


async def test_the_engines_refusal_does_not_name_the_checkpoint(gateway: Running) -> None:
    gateway.engine.fail_ranks = {0}
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.client().chat.completions.create(**QUESTION)
    assert refused.value.body["message"] == "default cannot do that"  # type: ignore[index]


async def test_without_a_checkpoint_it_is_not_ready_and_refuses_for_now(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, has_checkpoint=False) as gateway:
        async with gateway.http.get(f"{gateway.url}/readyz") as answer:
            assert answer.status == 503
        async with gateway.http.post(
            f"{gateway.url}/v1/chat/completions", json=QUESTION, headers=gateway.auth
        ) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        for headers, status in ((gateway.auth, 404), (gateway.admin, 503)):
            async with gateway.http.post(
                f"{gateway.url}/v1/chat/completions", json={**QUESTION, "model": "c-000007-x"}, headers=headers
            ) as answer:
                assert answer.status == status


async def test_an_engine_that_stays_away_gets_503_in_time(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, connect_wait_s=0.3) as gateway:
        await gateway.engine_runner.cleanup()
        with pytest.raises(openai.InternalServerError) as refused:
            await gateway.client().chat.completions.create(**QUESTION)
        assert refused.value.status_code == 503
        assert gateway.context.deployment.counters.failed_requests == 1


async def test_metrics_count_answers_by_arm_and_code(gateway: Running) -> None:
    await gateway.ask()
    async with gateway.http.get(f"{gateway.url}/metrics") as answer:
        text = await answer.text()
    assert 'prefloop_requests_total{arm="stable",code="200"} 1.0' in text
    assert "prefloop_outbox_pending 0.0" in text
