"""What the bench chooses from: comparisons that were shown, the requests that choose, and a gateway that takes them.

Comparisons are stored before the gateway starts, as the answers of a real one would have been; tokens are real.
"""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.gateway.servers import Server
from feedback.choices import store_comparison
from feedback.database import open_database, write_transaction
from feedback.events import Candidate, Comparison
from feedback.schema import migrate
from gateway.access.secrets import Secrets, load_secrets
from gateway.access.tokens import ComparisonToken, sign_token, text_digest
from prefloop.servers.ports import find_port

_QUESTION = "Write a short note that thanks the whole team for a hard week. " * 4
_ANSWER = "Thank you all for what you did this week; it was a lot, and it shows in every part of it. " * 6
_PROMPT_TOKENS, _ANSWER_TOKENS, _VOCABULARY = 60, 110, 128_000
_TTL_S = 24 * 3600.0
_PER_TRANSACTION = 2000
_numbers = itertools.count()


def show_comparisons(url: str, num: int) -> list[Comparison]:
    """Store so many comparisons in the gateway's database; made if it is not there."""
    database = open_database(url)
    migrate(database, "gateway")
    comparisons = [_make_comparison(next(_numbers)) for _ in range(num)]
    for start in range(0, num, _PER_TRANSACTION):
        with write_transaction(database) as connection:
            for comparison in comparisons[start : start + _PER_TRANSACTION]:
                store_comparison(connection, comparison)
    database.dispose()
    return comparisons


def write_requests(path: Path, comparisons: Sequence[Comparison], secrets: Secrets) -> None:
    """One choice of each, as client.c reads them."""
    with path.open("wb") as file:
        for comparison in comparisons:
            request = build_request(comparison, secrets)
            file.write(b"%d\n%b" % (len(request), request))


def build_request(comparison: Comparison, secrets: Secrets) -> bytes:
    """A choice as it goes over the wire."""
    body = json.dumps({"preferred": "first", "token": make_token(comparison, secrets)}).encode()
    return (
        b"POST /v1/comparisons/%b/choice HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        b"origin: https://app.example\r\ncontent-length: %d\r\n\r\n%b" % (comparison.id.encode(), len(body), body)
    )


def make_token(comparison: Comparison, secrets: Secrets) -> str:
    """The token that came with the comparison."""
    claims = ComparisonToken(
        comparison=comparison.id,
        app=comparison.app,
        chooser=comparison.user,
        order=(comparison.first.completion_id, comparison.second.completion_id),
        digests=(text_digest(comparison.first.text), text_digest(comparison.second.text)),
        expires_at=int(comparison.expires_at),
    )
    return sign_token(claims, secrets)


@contextlib.contextmanager
def run_gateway(state_dir: Path, url: str, log_url: str = "") -> Iterator[Server]:
    """A gateway without an engine on this database, for as long as the block runs. Raises ServerFailed."""
    port = find_port()
    env = {
        "PREFLOOP_CONFIG": os.devnull,
        "PREFLOOP_STATE_DIR": str(state_dir),
        "PREFLOOP_LOG_URL": log_url,
        "PREFLOOP_GATEWAY__PORT": str(port),
        "PREFLOOP_GATEWAY__DATABASE_URL": url,
        "PREFLOOP_GATEWAY__ENGINES": json.dumps([f"http://127.0.0.1:{find_port()}"]),
        "PREFLOOP_GATEWAY__RECONCILE_S": "60",
    }
    server = Server("gateway", [sys.executable, "-m", "gateway.app"], port, state_dir / "gateway.log", env)
    try:
        server.wait_until("/livez", 60)
        yield server
    finally:
        server.stop()


def open_secrets(state_dir: Path) -> Secrets:
    """The secrets that the gateway of this directory will use."""
    return load_secrets(state_dir)


def _make_comparison(number: int) -> Comparison:
    now = time.time()
    return Comparison(
        id=f"cmp_{number:016x}",
        policy="default",
        app="bench",
        user=f"user-{number % 1000}",
        conversation=f"conversation-{number}",
        messages=[{"role": "user", "content": _QUESTION}],
        prompt_token_ids=_make_ids(number, _PROMPT_TOKENS),
        first=_make_candidate(number, "first"),
        second=_make_candidate(number, "second"),
        asked="explore",
        propensity=0.1,
        engine="http://127.0.0.1:8801",
        created_at=now,
        expires_at=now + _TTL_S,
    )


def _make_candidate(number: int, which: str) -> Candidate:
    return Candidate(
        completion_id=f"chatcmpl-{number}-{which}",
        text=f"{which}: {_ANSWER}",
        checkpoint="c-000000-aaaaaaaaaaaa",
        digest="aa" * 32,
        arm="stable",
        finish_reason="stop",
        prompt_tokens=_PROMPT_TOKENS,
        completion_tokens=_ANSWER_TOKENS,
        token_ids=_make_ids(number, _ANSWER_TOKENS),
    )


def _make_ids(number: int, num: int) -> list[int]:
    return [(number * 7919 + place * 104_729) % _VOCABULARY for place in range(num)]
