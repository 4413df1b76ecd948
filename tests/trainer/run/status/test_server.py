"""The trainer's server: rounds, reports, lineage, and a round on demand from this machine alone."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.trainer.workbench import Workbench
from trainer.run.report.archive import RoundArchive
from trainer.run.status.board import Board
from trainer.run.status.requests import RoundRequest, RoundRequests
from trainer.run.status.server import Pages, start_server, start_status_server

JSON = "application/json"


@pytest.fixture
def served(bench: Workbench) -> Iterator[SimpleNamespace]:
    """A trainer after one round, and its address."""
    learner = bench.start()
    archive = RoundArchive(bench.database, bench.settings.checkpoints_dir)
    server = start_status_server("127.0.0.1", 0, bench.board, CollectorRegistry(), archive, bench.requests)
    bench.send(40)
    bench.run_all(learner)
    yield SimpleNamespace(bench=bench, learner=learner, url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


def call(url: str, method: str = "GET", body: Any = None, kind: str = JSON) -> tuple[int, Any]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, method=method, data=data, headers={"content-type": kind})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            text = response.read().decode()
            return response.status, json.loads(text) if response.headers["content-type"] == JSON else text
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_rounds_are_listed_and_shown_with_phases_and_rows(served: SimpleNamespace) -> None:
    code, listed = call(f"{served.url}/rounds")
    assert code == 200 and [row["number"] for row in listed["data"]] == [1]
    code, shown = call(f"{served.url}/rounds/1")
    assert code == 200
    assert set(shown["details"]["phases"]) == {"preparing", "training", "judging", "publishing"}
    assert shown["num_rows"] == shown["details"]["num_new"] == len(served.bench.trained[0])
    assert shown["has_report"]
    assert call(f"{served.url}/rounds/2") == (404, {"error": {"message": "there is no round 2"}})


def test_a_report_is_served_as_a_page_that_may_run_nothing(served: SimpleNamespace) -> None:
    with urllib.request.urlopen(f"{served.url}/rounds/1/report", timeout=5) as response:
        page, policy = response.read().decode(), response.headers["content-security-policy"]
    assert page.startswith("<!doctype html>") and "<script" not in page
    assert "default-src 'none'" in policy
    assert call(f"{served.url}/rounds/7/report")[0] == 404


def test_lineage_names_the_checkpoints_that_learnt_from_a_person(served: SimpleNamespace) -> None:
    user = f"user-{served.bench.trained[0][0].removeprefix('event-')}"
    checkpoint = served.bench.finished()[0]["checkpoint"]
    code, traced = call(f"{served.url}/lineage?user={user}")
    assert (code, traced) == (200, {"data": [{"checkpoint": checkpoint, "num_rows": 1, "num_ancestors": 0}]})
    assert call(f"{served.url}/lineage?user=nobody") == (200, {"data": []})
    assert call(f"{served.url}/lineage")[0] == 400


def test_a_round_on_demand_begins_with_few_choices(served: SimpleNamespace) -> None:
    served.bench.send(3)
    code, answer = call(f"{served.url}/rounds", "POST", {})
    assert (code, answer["state"]) == (202, "idle")
    assert call(f"{served.url}/rounds", "POST", {})[0] == 409
    served.bench.run_all(served.learner)
    assert [row["number"] for row in served.bench.finished()] == [1, 2]


def test_a_round_on_demand_is_refused_while_one_runs() -> None:
    board = Board()
    board.begin_round(3, "40 new decisive preferences")
    pages, requests = make_pages(board)
    code, _, body = pages.post("/rounds", JSON, b"{}", "127.0.0.1")
    assert code == 409 and b"round 3 is under way: 40 new decisive preferences" in body
    assert requests.look() is None


def make_pages(board: Board) -> tuple[Pages, RoundRequests]:
    requests = RoundRequests()
    return Pages(board, CollectorRegistry(), None, requests), requests


@pytest.mark.parametrize(
    ("kind", "body", "client", "code"),
    [
        (JSON, b"{}", "10.0.0.7", 403),
        ("text/plain", b"{}", "127.0.0.1", 415),  # what a page in a browser can send unasked
        (JSON, b"[]", "127.0.0.1", 400),
        (JSON, b"{", "::1", 400),
        ("application/json; charset=utf-8", b'{"from_base": true}', "::1", 202),
    ],
)
def test_a_command_comes_from_this_machine_and_as_json(kind: str, body: bytes, client: str, code: int) -> None:
    pages, requests = make_pages(Board())
    assert pages.post("/rounds", kind, body, client)[0] == code
    assert requests.look() == (RoundRequest(from_base=True) if code == 202 else None)


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("Bearer told", 202),
        ("Bearer guessed", 403),
        ("told", 403),
        ("Bearer ", 403),
        ("Bearer t\u00f6ld", 403),
        ("", 403),
    ],
)
def test_a_command_from_elsewhere_carries_the_token_that_the_gateway_made(
    authorization: str, code: int, tmp_path: Path
) -> None:
    requests = RoundRequests()
    pages = Pages(Board(), CollectorRegistry(), None, requests, tmp_path / "trainer_token")
    assert pages.post("/rounds", JSON, b"{}", "10.0.0.7", authorization)[0] == 403  # there is none yet
    (tmp_path / "trainer_token").write_text("\n")
    assert pages.post("/rounds", JSON, b"{}", "10.0.0.7", "Bearer ")[0] == 403  # an empty one is none
    (tmp_path / "trainer_token").write_text("told\n")
    assert pages.post("/rounds", JSON, b"{}", "10.0.0.7", authorization)[0] == code


def test_the_token_is_read_from_the_request(tmp_path: Path) -> None:
    seen: list[str] = []
    pages, _ = make_pages(Board())
    pages.post = lambda *given: seen.append(given[-1]) or (202, JSON, b"{}")  # type: ignore[method-assign,func-returns-value]
    server = start_server("127.0.0.1", 0, pages, 1000)
    url = f"http://127.0.0.1:{server.server_port}/rounds"
    request = urllib.request.Request(url, method="POST", data=b"{}", headers={"authorization": "Bearer told"})
    with urllib.request.urlopen(request, timeout=5):
        pass
    server.shutdown()
    assert seen == ["Bearer told"]


def test_a_database_that_is_gone_is_an_error_and_not_a_dead_server(served: SimpleNamespace) -> None:
    def fail() -> Any:
        raise OSError("gone")

    served.bench.database.connect = fail
    assert call(f"{served.url}/rounds")[0] == 503
    assert call(f"{served.url}/livez")[0] == 200
