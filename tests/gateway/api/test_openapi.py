"""The OpenAPI document holds: schemathesis finds no answer that it does not name, and it names no 5xx but 503 and 504."""

import asyncio
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
import uvloop
from conftest import Running, run_gateway, start_engine
from schemathesis import checks
from whole_engine import WholeEngine

from bench.gateway.checkpoints import make_checkpoint
from gateway.access.keys import key_id_of

DOCS = Path(__file__).parents[3] / "docs"
EXAMPLES = 12  # of each operation and key, besides those of the coverage phase: about a minute in all on two cores
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]

document = json.loads((DOCS / "openapi.json").read_text())
schema = schemathesis.openapi.from_dict(document)


class Served:
    """A gateway in a thread of its own: schemathesis asks from this one."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.keys: dict[str, str] = {}
        self.known: dict[str, str] = {}  # what is there to be asked for, by the name of its parameter or field
        self._folder = folder
        self._is_ready = threading.Event()
        self._loop = uvloop.new_event_loop()
        self._is_over = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    def start(self) -> None:
        self._thread.start()
        assert self._is_ready.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        runner, port = await start_engine(WholeEngine())
        async with run_gateway(self._folder, engines=[f"http://127.0.0.1:{port}"], connect_wait_s=2.0) as running:
            self.url = running.url
            self.keys = {scope: await running.make_key(scope) for scope in ("app", "operator", "admin")}
            self.known = await self._make_things(running)
            self._is_ready.set()
            await self._is_over.wait()
        await runner.cleanup()

    async def _make_things(self, running: Running) -> dict[str, str]:
        comparison = (await running.ask({"x-prefloop-compare": "always"}))["comparison"]
        path = make_checkpoint(self._folder / "more", 1)
        await running.publish(self._folder / "checkpoints", 2)
        list_rollouts = f"{running.url}/operator/v1/rollouts"
        rollouts: list[dict[str, str]] = []
        while not rollouts:
            async with running.http.get(list_rollouts, headers=running.admin) as answer:
                rollouts = (await answer.json())["data"]
        return {
            "model": "default",
            "name": "default",
            "comparison_id": comparison["id"],
            "token": comparison["token"],
            "path": str(path),
            "checkpoint": rollouts[0]["checkpoint"],
            "rollout": rollouts[0]["id"],
            "key_id": key_id_of(await running.make_key()),
        }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    served.start()
    yield served
    served.stop()


@pytest.mark.parametrize("scope", ["app", "operator", "admin", None])
@schema.parametrize()
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
def test_every_answer_is_documented(case: schemathesis.Case, served: Served, scope: str | None) -> None:
    use_what_is_there(case, served.known)
    headers = {} if scope is None else {"Authorization": f"Bearer {served.keys[scope]}"}
    case.call_and_validate(base_url=served.url, headers=headers, checks=CHECKS)


def use_what_is_there(case: schemathesis.Case, known: dict[str, str]) -> None:
    """Every second name that was drawn is one that exists."""
    for names in (case.path_parameters, case.body):
        if isinstance(names, dict):
            for name, value in names.items():
                if name in known and isinstance(value, str) and len(value) % 2 == 0:
                    names[name] = known[name]


def test_the_page_is_what_the_gateway_shows() -> None:
    spec = importlib.util.spec_from_file_location("render_openapi", DOCS / "render_openapi.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "openapi.json").read_text() == module.render_openapi(), "run `make docs`"


async def test_the_document_is_for_everybody_and_leaves_the_pages_out(gateway: Running) -> None:
    async with gateway.http.get(f"{gateway.url}/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        shown = await answer.json()
    assert shown == document
    assert not {"/", "/console", "/console/session", "/playground/chat", "/playground/examples"} & shown["paths"].keys()
    assert "/v1/chat/completions" in shown["paths"] and "/operator/v1/rollouts:rollback" in shown["paths"]


def test_no_failure_of_our_own_is_an_answer() -> None:
    statuses = {status for path in document["paths"].values() for each in path.values() for status in each["responses"]}
    assert {status for status in statuses if status >= "5"} == {"503", "504"}
