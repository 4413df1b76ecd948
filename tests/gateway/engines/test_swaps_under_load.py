"""Hot swaps in a row under load, by the bench's own load and operator, with an engine that is as strict as it is quick."""

import asyncio
import json
from pathlib import Path

import aiohttp
from aiohttp import web
from conftest import make_settings, wait_until
from engine import BASE_LOGPROBS, PROBE_LOGPROBS, PROBE_TOKENS
from engine_process import EngineProcess

from bench.swap.load import Load
from bench.swap.operating import Operator
from bench.swap.sentences import SENTENCES, sentence_of
from bench.swap.swaps import Swaps
from gateway.app import create_app
from gateway.http.server import build_server

NUM_SWAPS = 5


class Parrot(EngineProcess):
    """Every adapter says its sentence; one that is not loaded is refused, also if it was when the request came."""

    num_refused = 0

    async def _answer(self, request: web.Request, body: dict, rank: int) -> web.StreamResponse:
        if body["model"] not in self.adapters:
            self.num_refused += 1
            return web.json_response({"error": {"message": f"The model {body['model']} does not exist."}}, status=404)
        text = sentence_of(body["model"])
        if body.get("stream"):
            return await self._stream(request, body, text, rank)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
        head = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"]}
        return web.json_response({**head, "choices": [choice], "usage": usage}, dumps=compact)


def compact(data: object) -> str:
    return json.dumps(data, separators=(",", ":"))


def write_adapters(folder: Path) -> Path:
    for number in range(len(SENTENCES)):
        directory = folder / str(number)
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text('{"r": 16}')
        (directory / "adapter_model.safetensors").write_bytes(bytes([number] * 16))
        probe = {"prompt_token_ids": PROBE_TOKENS, "logprobs": PROBE_LOGPROBS, "base_logprobs": BASE_LOGPROBS}
        (directory / "probe.json").write_text(json.dumps(probe))
    return folder


async def test_no_request_fails_and_every_answer_is_its_checkpoints_over_swaps_in_a_row(tmp_path: Path) -> None:
    engine = Parrot()
    engine.delay_s = 0.02
    await engine.start()
    settings = make_settings(tmp_path, engine.port).model_dump()
    settings["rollout"] |= {"steps": [{"weight": 0.5}], "duel_share": 1.0, "baking_s": 0.1, "report_s": 0.05}
    app = create_app(type(make_settings(tmp_path, engine.port)).model_validate(settings))
    server = build_server(app, host="127.0.0.1", port=0, drain_timeout_s=2)
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    async with aiohttp.ClientSession() as session:
        adapters = write_adapters(tmp_path / "adapters")
        operator = Operator(url, app.secrets.admin_key, session)
        swaps = Swaps(operator, adapters, tmp_path / "checkpoints", trial_s=0.1)
        await swaps.start()
        key = await operator.call("POST", "/operator/v1/keys", {"name": "b", "scope": "app operator", "pairs": True})
        load = Load(url, key["key"], num_connections=16)
        loading = asyncio.create_task(load.run())
        for _ in range(NUM_SWAPS):
            await swaps.swap(load)
        load.stop()
        await loading
    tally = load.tally
    assert (tally.failed, tally.truncated, tally.wrong_checkpoint) == (0, 0, 0), tally.examples
    assert set(tally.requests) == {"single", "stream", "pair", "pair stream", "pinned"} and tally.comparisons > 0
    assert len(tally.by_checkpoint) >= NUM_SWAPS
    assert engine.num_refused == 0 and engine.adapters == {swaps.serving}
    assert len(engine.loads) == NUM_SWAPS + 1
    assert app.context.deployment.all_in_flight() == {}
    server.should_exit = True
    await serving
    await engine.kill()
