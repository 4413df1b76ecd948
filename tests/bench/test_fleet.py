"""The fleet's links and its balancer, and which failures of a request count as a killed process's."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from aiohttp import web

from bench.fleet.links import Balancer, Link
from bench.fleet.people import has_begun
from bench.fleet.run import Faults


@contextlib.asynccontextmanager
async def serve(name: str) -> AsyncIterator[tuple[int, web.AppRunner]]:
    """A gateway that says its name, and that it is ready."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=name)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1], runner
    finally:
        await runner.cleanup()


async def test_a_link_passes_bytes_and_holds_them_while_it_is_cut() -> None:
    async with serve("one") as (port, _), httpx.AsyncClient(timeout=5) as client:
        link = Link(port)
        await link.start()
        assert (await client.get(f"http://127.0.0.1:{link.port}/")).text == "one"
        cutting = asyncio.create_task(link.cut(0.6))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        assert (await client.get(f"http://127.0.0.1:{link.port}/")).text == "one"  # over the connection there was
        assert time.monotonic() - started > 0.4 and link.num_stopped > 0
        await cutting
        await link.stop()


async def test_a_new_connection_over_a_link_that_is_cut_hangs() -> None:
    async with serve("one") as (port, _), httpx.AsyncClient(timeout=0.3) as client:
        link = Link(port)
        await link.start()
        cutting = asyncio.create_task(link.cut(1.0))
        await asyncio.sleep(0.05)
        with pytest.raises(httpx.TimeoutException):
            await client.get(f"http://127.0.0.1:{link.port}/")
        await cutting
        await link.stop()


async def test_the_balancer_uses_both_gateways_and_passes_over_one_that_is_gone() -> None:
    async with serve("one") as (first, runner), serve("two") as (second, _):
        balancer = Balancer([first, second])
        await balancer.start()
        async with asyncio.timeout(5):
            while balancer.num_ready < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

        async def ask() -> str:
            async with httpx.AsyncClient(timeout=5) as client:
                return (await client.get(balancer.url)).text

        assert {await ask() for _ in range(4)} == {"one", "two"}
        await runner.cleanup()
        assert {await ask() for _ in range(4)} == {"two"}
        await balancer.stop()


def test_only_a_stream_that_broke_after_a_kill_is_the_victims() -> None:
    faults = Faults(kills=[(100.0, "engine-1"), (200.0, "broker")])
    assert faults.find_kill(105.0) == "engine-1"
    assert faults.find_kill(99.0) is None and faults.find_kill(116.0) is None and faults.find_kill(201.0) is None
    request = httpx.Request("POST", "http://gateway/v1/chat/completions")
    refused = openai.InternalServerError("no", response=httpx.Response(503, request=request), body=None)
    assert not has_begun(refused) and not has_begun(ValueError("odd"))
    assert has_begun(openai.APIConnectionError(request=request)) and has_begun(httpx.RemoteProtocolError("gone"))
    assert has_begun(openai.APIError("engine_interrupted", request, body=None))
