"""`prefloop keys`: what it asks of the gateway, and what it prints."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from prefloop.cli import app

runner = CliRunner(env={"COLUMNS": "200"})

LIMITS = {"requests_per_minute": 60, "tokens_per_day": 1_000_000, "budget_per_day": 2.5, "budget_per_minute": None}


class FakeGateway(HTTPServer):
    """Answers every request with `answer`, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Any = {}
        self.asked: list[tuple[str, str, Any]] = []

    def run(self, *arguments: str) -> Any:
        url = f"http://127.0.0.1:{self.server_port}"
        return runner.invoke(app, ["keys", *arguments, "--gateway", url, "--key", "pl_a_b"])


class Handler(BaseHTTPRequestHandler):
    server: FakeGateway

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.command, self.path, json.loads(body) if body else None))
        answer = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_key_is_created_with_the_limits_that_were_given(gateway):
    gateway.answer = {"key": "pl_new_key"}
    result = gateway.run("create", "shop", "--requests-per-minute", "60", "--budget-per-day", "2.5")
    assert result.exit_code == 0 and result.output.strip() == "pl_new_key"
    limits = {"requests_per_minute": 60, "budget_per_day": 2.5}
    assert gateway.asked == [
        ("POST", "/operator/v1/keys", {"name": "shop", "scope": "app", "pairs": True, "limits": limits})
    ]


def test_limits_are_changed_and_lifted(gateway):
    gateway.answer = {"limits": LIMITS}
    result = gateway.run("limit", "k1", "--tokens-per-day", "1000000", "--requests-per-day", "none")
    assert gateway.asked == [
        ("PATCH", "/operator/v1/keys/k1", {"limits": {"tokens_per_day": 1_000_000, "requests_per_day": None}})
    ]
    assert result.output.splitlines() == ["60 requests/minute", "1,000,000 tokens/day", "2.5 budget/day"]
    gateway.answer = {"limits": None}
    assert gateway.run("limit", "k1", "--requests-per-minute", "none").output.strip() == "no limits"


def test_limits_are_listed(gateway):
    row = {"id": "k1", "name": "shop", "scope": "app", "pairs": True, "created_at": 1.0, "revoked_at": None}
    gateway.answer = {"data": [{**row, "limits": LIMITS}, {**row, "id": "k2", "limits": None}]}
    result = gateway.run("list")
    assert result.exit_code == 0
    for text in ("limits", "60 requests/minute", "1,000,000 tokens/day", "k2"):
        assert text in result.output


@pytest.mark.parametrize("text", ["sixty", "-1", "1.5"])
def test_a_limit_that_is_no_number_is_said_so(gateway, text):
    result = gateway.run("limit", "k1", "--requests-per-minute", text)
    assert result.exit_code == 1 and "--requests-per-minute" in result.output
    assert gateway.asked == []


@pytest.mark.parametrize("text", ["nan", "inf"])
def test_a_budget_is_a_finite_number(gateway, text):
    assert gateway.run("create", "shop", "--budget-per-day", text).exit_code == 1


def test_limiting_wants_a_limit(gateway):
    result = gateway.run("limit", "k1")
    assert result.exit_code == 1 and "at least one limit" in result.output
