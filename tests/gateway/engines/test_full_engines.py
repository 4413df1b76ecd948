"""Which whole models want an engine, and the engines' HTTP."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from conftest import Running
from full_engine import make_full_checkpoint

from bench.gateway.checkpoints import make_checkpoint
from feedback.manifest import read_manifest
from gateway.engines.full_engines import check_url, find_required
from gateway.tables.checkpoints import CheckpointRow
from gateway.tables.gateways import Report


def row(name: str, status: str, kind: str = "full") -> CheckpointRow:
    manifest = (
        f'{{"id":"{name}","number":1,"parent":null,"base_digest":"","rank":0,"digest":"","files":{{}},"created_at":0,'
        f'"kind":"{kind}","probe":{{"prompt_token_ids":[],"logprobs":[],"base_logprobs":[]}}}}'
    )
    return CheckpointRow(name, 1, None, kind, "", "/x", manifest, status, 0.0, 0.0)


def want(rows: list[CheckpointRow], stable: str | None = "s", *reports: Report) -> list[str]:
    return [each.id for each in find_required(rows, stable, reports)]


def test_a_whole_model_wants_an_engine_from_its_trial_until_it_is_retired() -> None:
    for status in ("canary", "stable", "baking", "draining"):
        assert want([row("s", status)]) == ["s"], status
    for status in ("waiting", "superseded", "retired", "deleted"):
        assert want([row("c", status)]) == [], status


def test_a_copy_of_a_whole_model_wants_an_engine_too_and_adapters_want_none() -> None:
    assert want([row("a", "canary", "aa"), row("l", "stable", "lora")]) == ["a"]


def test_the_first_model_ever_wants_an_engine_while_it_waits() -> None:
    assert want([row("first", "waiting"), row("next", "waiting")], None) == ["first"]


def test_a_retired_model_keeps_its_engine_while_a_gateway_answers_by_it_or_would_load_it() -> None:
    answering = Report("g", 7, {"old": 1}, frozenset(), 0.0)
    expecting = Report("g", 7, {}, frozenset({"old"}), 0.0)
    assert want([row("old", "retired")], "s", answering) == want([row("old", "retired")], "s", expecting) == ["old"]


@pytest.mark.parametrize(
    "url",
    ["", "engine:8000", "ftp://e:1", "http://", "http://u:p@e:1", "http://e:1?x=1", "http://e:99999", "http://e 1"],
)
def test_addresses_that_are_no_base_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        check_url(url)


def test_a_slash_at_the_end_makes_no_other_engine() -> None:
    assert check_url("https://engine:8000/") == "https://engine:8000"


async def call(gateway: Running, method: str, body: Any = None, **query: str) -> tuple[int, Any]:
    address = f"{gateway.url}/operator/v1/engines"
    async with gateway.http.request(method, address, json=body, params=query, headers=gateway.admin) as answer:
        return answer.status, await answer.json()


async def register_full(gateway: Running, folder: Path, number: int) -> str:
    path = make_full_checkpoint(folder, number)
    body = {"path": str(path)}
    async with gateway.http.post(f"{gateway.url}/operator/v1/checkpoints", json=body, headers=gateway.admin) as answer:
        assert answer.status == 201, await answer.text()
    return path.name


async def test_registering_and_withdrawing_are_harmless_to_repeat(gateway: Running, tmp_path: Path) -> None:
    checkpoint = await register_full(gateway, tmp_path / "full", 7)
    body = {"url": "http://127.0.0.1:9/", "checkpoint": checkpoint}
    assert [(await call(gateway, "POST", body))[0] for _ in range(2)] == [201, 200]
    said: dict[str, Any] = {"wanted": []}
    async with asyncio.timeout(10):
        while not said["wanted"]:
            _, said = await call(gateway, "GET")
    assert [row["checkpoint"] for row in said["wanted"]] == [checkpoint]
    assert {"url": "http://127.0.0.1:9", "checkpoint": checkpoint}.items() <= said["data"][-1].items()
    withdrawn = [(await call(gateway, "DELETE", url="http://127.0.0.1:9")) for _ in range(2)]
    assert [(status, said["was_registered"]) for status, said in withdrawn] == [(200, True), (200, False)]


async def test_an_engine_is_registered_for_one_whole_model_that_is_known(gateway: Running, tmp_path: Path) -> None:
    first = await register_full(gateway, tmp_path / "full", 7)
    second = await register_full(gateway, tmp_path / "full", 8)
    url = "http://127.0.0.1:9"
    assert (await call(gateway, "POST", {"url": url, "checkpoint": first}))[0] == 201
    status, said = await call(gateway, "POST", {"url": url, "checkpoint": second})
    assert status == 409 and first in said["error"]["message"]
    assert (await call(gateway, "POST", {"url": url, "checkpoint": "c-000009-unknown"}))[0] == 404
    adapter = gateway.context.deployment.view.stable
    status, said = await call(gateway, "POST", {"url": url, "checkpoint": adapter})
    assert status == 400 and "adapter" in said["error"]["message"]
    fixed = f"http://127.0.0.1:{gateway.engine_port}/"
    assert (await call(gateway, "POST", {"url": fixed, "checkpoint": first}))[0] == 409
    assert (await call(gateway, "POST", {"url": "nowhere", "checkpoint": first}))[0] == 400


async def test_apps_neither_see_nor_register_engines(gateway: Running) -> None:
    for method in ("GET", "POST", "DELETE"):
        async with gateway.http.request(method, f"{gateway.url}/operator/v1/engines", headers=gateway.auth) as answer:
            assert answer.status == 403


def test_a_manifest_of_a_whole_model_needs_its_files(tmp_path: Path) -> None:
    assert read_manifest(make_full_checkpoint(tmp_path, 1)).is_full
    assert not read_manifest(make_checkpoint(tmp_path, 1)).is_full
