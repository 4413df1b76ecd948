"""The trainer's HTTP server on loopback: /livez, /readyz, /metrics, /status, the rounds with their reports, and a round on demand.

GET /rounds, /rounds/N, /rounds/N/report, /lineage?user=U; POST /rounds. Commands are taken from this machine, or with the
token that the gateway has too, and as JSON alone: a page in a browser cannot send that without asking first, and nobody answers it.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from feedback.outages import describe_error
from trainer.run.status.board import Board
from trainer.run.status.requests import RoundRequest, RoundRequests

log = logging.getLogger("trainer.run.status.server")

MAX_BODY = 10_000  # bytes
BUSY = ("preparing", "training", "evaluating", "publishing")
_JSON = "application/json"
_ROUND = re.compile(r"/rounds/(\d{1,9})(/report)?")
# The report's own styles and nothing else: it shows what people and policies wrote.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


class Archive(Protocol):
    """What is on record, read in the server's threads."""

    def list_rounds(self) -> list[dict[str, Any]]: ...
    def find_round(self, number: int) -> dict[str, Any] | None: ...
    def find_report(self, number: int) -> Path | None: ...
    def trace_user(self, user: str) -> list[dict[str, Any]]: ...


Answer = tuple[int, str, bytes]


class Pages:
    """Answers requests. Pure but for what it reads."""

    def __init__(
        self,
        board: Board,
        registry: CollectorRegistry,
        archive: Archive | None,
        requests: RoundRequests,
        token_path: Path | None = None,
    ) -> None:
        """token_path: read at every command from elsewhere, since the gateway makes it at its first start."""
        self._board, self._registry, self._archive, self._requests = board, registry, archive, requests
        self._token_path = token_path

    def get(self, target: str) -> Answer:
        """The answer to GET."""
        url = urlsplit(target)
        if url.path == "/livez":
            return 200, "text/plain", b"ok\n"
        if url.path == "/readyz":
            return self._get_ready()
        if url.path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if url.path == "/status":
            return answer_json(200, asdict(self._board.read()))
        if self._archive is not None:
            return self._get_archived(self._archive, url.path, parse_qs(url.query))
        return refuse(404, "no such page")

    def _get_ready(self) -> Answer:
        """200 for a trainer that works, and for one that could at once: both have the base loaded."""
        view = self._board.read()
        state = {"state": view.lease.state, "holder": view.lease.holder}
        return answer_json(200, state) if view.is_ready else answer_json(503, state | {"reason": view.round.reason})

    def _get_archived(self, archive: Archive, path: str, query: dict[str, list[str]]) -> Answer:
        if path == "/rounds":
            return answer_json(200, {"data": archive.list_rounds()})
        if path == "/lineage":
            if not (user := query.get("user", [""])[0]):
                return refuse(400, "say whose rows: ?user=…")
            return answer_json(200, {"data": archive.trace_user(user)})
        match = _ROUND.fullmatch(path)
        if match is None:
            return refuse(404, "no such page")
        number = int(match[1])
        if match[2]:
            report = archive.find_report(number)
            if report is None:
                return refuse(404, f"round {number} has no report")
            return 200, "text/html; charset=utf-8", report.read_bytes()
        found = archive.find_round(number)
        return refuse(404, f"there is no round {number}") if found is None else answer_json(200, found)

    def post(self, target: str, content_type: str, body: bytes, client: str, authorization: str = "") -> Answer:
        """The answer to POST. client: the sender's address."""
        if urlsplit(target).path != "/rounds":
            return refuse(404, "no such page")
        if not (ipaddress.ip_address(client).is_loopback or self._has_token(authorization)):
            return refuse(
                403, "a round is asked for on the trainer's own machine, or with its token (secrets/trainer_token)"
            )
        if content_type.partition(";")[0].strip() != _JSON:
            return refuse(415, "send application/json")
        try:
            asked = json.loads(body or b"{}")
            request = RoundRequest(from_base=bool(asked.get("from_base", False)))
        except (ValueError, AttributeError, RecursionError):
            return refuse(400, "the body is no JSON object")
        view = self._board.read()
        now = view.round
        if view.lease.state == "standby":
            return refuse(409, f"this trainer stands by: ask {view.lease.holder or 'the one that works'}")
        if now.state in BUSY:
            return refuse(409, f"round {now.number} is under way: {now.reason}")
        if not self._requests.ask(request):
            return refuse(409, f"a round is asked for already; {now.state}: {now.reason}")
        return answer_json(202, {"state": now.state, "reason": now.reason})

    def _has_token(self, authorization: str) -> bool:
        try:
            token = self._token_path.read_text().strip() if self._token_path else ""
        except FileNotFoundError:
            return False
        return bool(token) and hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode())


def answer_json(code: int, body: Any) -> Answer:
    """An answer with a JSON body."""
    return code, _JSON, json.dumps(body).encode()


def refuse(code: int, message: str) -> Answer:
    """An error, in words."""
    return answer_json(code, {"error": {"message": message}})


def start_status_server(
    host: str,
    port: int,
    board: Board,
    registry: CollectorRegistry,
    archive: Archive | None = None,
    requests: RoundRequests | None = None,
    token_path: Path | None = None,
) -> ThreadingHTTPServer:
    """Serve in a thread until `shutdown`. Port 0 takes a free one: see `server_port`."""
    pages = Pages(board, registry, archive, requests or RoundRequests(), token_path)
    return start_server(host, port, pages, MAX_BODY)


class Answering(Protocol):
    """What answers requests, in the server's threads."""

    def get(self, target: str) -> Answer: ...
    def post(self, target: str, content_type: str, body: bytes, client: str, authorization: str) -> Answer: ...


def start_server(host: str, port: int, pages: Answering, max_body: int) -> ThreadingHTTPServer:
    """Serve pages in a thread until `shutdown`; bodies above max_body bytes are refused unread."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a sender to send what it announced

        def do_GET(self) -> None:
            self._answer(lambda: pages.get(self.path))

        def do_POST(self) -> None:
            said = self.headers.get("content-length") or "0"
            length = int(said) if said.isdecimal() else -1
            if not 0 <= length <= max_body:
                self._answer(lambda: refuse(413, "the body is too long"))
                return
            body = self.rfile.read(length)
            kind = self.headers.get("content-type") or ""
            token = self.headers.get("authorization") or ""
            self._answer(lambda: pages.post(self.path, kind, body, self.client_address[0], token))

        def _answer(self, make: Callable[[], Answer]) -> None:
            try:
                code, content_type, body = make()
            except Exception as error:  # the request's edge: the database may be gone
                log.warning("%s %s failed: %s", self.command, self.path, describe_error(error))
                code, content_type, body = refuse(503, describe_error(error))
            self.send_response(code)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            if content_type.startswith("text/html"):
                self.send_header("content-security-policy", _REPORT_POLICY)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    return server
