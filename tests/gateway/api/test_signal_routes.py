"""Signals over HTTP: stored with what they were said of before they are acknowledged, once per idempotency key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, select
from starlette.responses import Response

from feedback.choices import outbox
from feedback.database import Writer, create_tables, metadata, open_database
from feedback.errors import DatabaseError
from feedback.events import Outcome, Signal, decode_event
from feedback.outbox import load_rows
from feedback.signals import signals
from gateway.access.key_ring import KeyRing
from gateway.access.keys import create_key
from gateway.access.secrets import Secrets, load_secrets
from gateway.api.signal_request import parse_signal
from gateway.api.signals import build_signals_router
from gateway.errors import ApiError
from gateway.serving.metrics import Metrics
from gateway.serving.recording.completion_recorder import CompletionRecorder
from gateway.serving.recording.completion_store import CompletionStore
from gateway.serving.routing import Who
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import checkpoints

SERVED_AT = time.time()  # a completion of long ago would be deleted at once
ID = "chatcmpl-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "How are you?"}]
REQUEST = json.dumps({"model": "default", "messages": MESSAGES}).encode()
WHOLE = (
    b'{"id":"%s","choices":[{"index":0,"message":{"role":"assistant","content":"Well."},"finish_reason":"length"}]}'
    % ID.encode()
)
STREAM = b"".join(
    b'data: {"id":"%s","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (ID.encode(), word)
    for word in (b"", b"We", b"ll.")
)
GIVEN = {"messages": MESSAGES, "answer": "Fine."}


@dataclass
class FakeRelay:
    """Counts how often it was told that there is work."""

    num_notified: int = 0

    def notify(self) -> None:
        self.num_notified += 1


@dataclass
class Parts:
    """What the route needs of a running gateway."""

    settings: GatewaySettings
    secrets: Secrets
    database: Engine
    writer: Writer
    keys: KeyRing
    metrics: Metrics
    completions: CompletionRecorder
    relay: FakeRelay = field(default_factory=FakeRelay)


@dataclass
class House:
    """A gateway's signals under test; `http` carries the first app's key."""

    parts: Parts
    http: httpx.AsyncClient
    key: str

    async def make_key(self, app: str, *scopes: str) -> str:
        key, _ = await self.parts.writer.arun(
            lambda conn: create_key(
                conn, self.parts.secrets.pepper, app=app, scopes=frozenset(scopes), pairs=False, now=1.0
            )
        )
        self.parts.keys.refresh(self.parts.database)
        return key

    def serve(
        self,
        response: bytes = WHOLE,
        *,
        request: bytes = REQUEST,
        app: str = "app-1",
        conversation: str = "conv-1",
        is_stream: bool = False,
    ) -> None:
        """Have an answer recorded, as the hot path does."""
        who = (app, "user-1", conversation, "default", "c-000001-aaaaaaaaaaaa", "canary")
        self.parts.completions.note((SERVED_AT, None, *who, request, response, is_stream))

    async def signal(
        self, body: Any, *, completion_id: str = ID, key: str | None = None, **headers: str
    ) -> httpx.Response:
        sent = {"authorization": f"Bearer {key or self.key}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.post(f"/v1/completions/{completion_id}/signal", content=content, headers=sent)

    def events(self) -> list[Signal]:
        """What waits for the log."""
        with self.parts.database.connect() as conn:
            rows = load_rows(conn, outbox, 100)
        events = [decode_event(row.record.headers, row.record.value) for row in rows]
        assert {event.type for event in events} <= {"prefloop.signal.v1"}
        return [event.data for event in events if isinstance(event.data, Signal)]

    def num_rows(self) -> int:
        with self.parts.database.connect() as conn:
            return len(conn.execute(select(signals.c.id)).all())


@contextlib.asynccontextmanager
async def open_house(tmp_path: Path, **section: Any) -> AsyncIterator[House]:
    settings = GatewaySettings.model_validate({"state_dir": tmp_path, "gateway": section})
    secrets = load_secrets(tmp_path)
    database = open_database(settings.gateway_database)
    create_tables(database, metadata)
    writer, keys, metrics = Writer(database), KeyRing(secrets.pepper), Metrics()
    completions = CompletionRecorder(CompletionStore(settings.completions_database), settings, metrics.registry)
    completions.start()
    parts = Parts(settings, secrets, database, writer, keys, metrics, completions)
    api = FastAPI()

    async def refuse(request: Any, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return Response(error.body(), error.status, headers=error.headers, media_type="application/json")

    api.add_exception_handler(ApiError, refuse)
    api.include_router(build_signals_router(parts))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://gateway") as http:
        house = House(parts, http, "")
        house.key = await house.make_key("app-1", "app")
        yield house
    completions.close()
    writer.close()
    database.dispose()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        yield house


async def test_a_signal_is_stored_with_what_it_was_said_of(house: House) -> None:
    row = {
        "id": "c-000001-aaaaaaaaaaaa",
        "number": 1,
        "kind": "lora",
        "digest": "aa" * 32,
        "path": "p",
        "manifest": "{}",
    }
    await house.parts.writer.arun(
        lambda conn: (
            conn.execute(checkpoints.insert().values(**row, status="canary", created_at=1.0, arrived_at=1.0)).rowcount
        )
    )
    house.serve()
    answer = await house.signal({"thumb": "up", "comment": "Nice 😀"})
    assert answer.status_code == 200
    body = answer.json()
    assert body == {"id": body["id"], "object": "completion.signal", "completion_id": ID, "created": body["created"]}
    assert body["id"].startswith("sig_") and abs(body["created"] - time.time()) < 5
    [signal] = house.events()
    assert signal == Signal(
        completion_id=ID,
        kind="said",
        messages=MESSAGES,
        answer="Well.",
        created_at=signal.created_at,
        is_recorded=True,
        completed_at=SERVED_AT,
        policy="default",
        app="app-1",
        user="user-1",
        conversation="conv-1",
        checkpoint="c-000001-aaaaaaaaaaaa",
        digest="aa" * 32,
        arm="canary",
        thumb="up",
        comment="Nice 😀",
        finish_reason="length",
    )
    assert house.num_rows() == house.parts.relay.num_notified == 1
    assert house.parts.metrics.registry.get_sample_value("prefloop_signals_total") == 1


async def test_a_streamed_answer_is_put_together(house: House) -> None:
    house.serve(STREAM + b"data: [DONE]\n\n", is_stream=True)
    assert (await house.signal({"thumb": "down"})).status_code == 200
    assert house.events()[0].answer == "Well."


async def test_a_conversation_that_nobody_named_is_known_by_its_opening(house: House) -> None:
    house.serve(conversation="")
    assert (await house.signal({"thumb": "up"})).status_code == 200
    who = Who(house.parts.secrets, "app-1", "", "", lambda: MESSAGES)
    who.user = "user-1"
    assert house.events()[0].conversation == who.conversation


async def test_each_thing_that_can_be_said_arrives(house: House) -> None:
    house.serve()
    for body in (
        {"rating": 4},
        {"rating": 7.5, "scale": 10},
        {"edited_text": "Very well."},
        {"outcome": {"name": "ticket closed", "success": False}},
        {"outcome": {"score": 0.25}, "rating": 1, "thumb": None},
    ):
        assert (await house.signal(body)).status_code == 200, body
    said = [(s.rating, s.scale, s.edited_text, s.outcome, s.thumb) for s in house.events()]
    assert said == [
        (4.0, 5, None, None, None),
        (7.5, 10, None, None, None),
        (None, None, "Very well.", None, None),
        (None, None, None, Outcome(name="ticket closed", success=False), None),
        (1.0, 5, None, Outcome(score=0.25), None),
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"thumb": "up\xff"}', None),
        (b'{"comment": "\\ud800"}', None),
        (b"[" * 100_000, None),
        ({}, None),
        ({"thumb": None}, None),
        ({"index": 0}, None),
        (GIVEN, None),
        ({"thumb": "sideways"}, "thumb"),
        ({"thumb": 1}, "thumb"),
        ({"thumb": "up", "mood": "good"}, "mood"),
        ({"rating": 0}, "rating"),
        ({"rating": 5.1}, "rating"),
        ({"rating": True}, "rating"),
        (b'{"rating": 1e999}', "rating"),
        ({"rating": 5, "scale": 1}, "scale"),
        ({"thumb": "up", "scale": 5}, "scale"),
        ({"rating": 3, "scale": 2.5}, "scale"),
        ({"edited_text": ""}, "edited_text"),
        ({"edited_text": 7}, "edited_text"),
        ({"comment": ""}, "comment"),
        ({"comment": "x" * 10_001}, "comment"),
        ({"outcome": {}}, "outcome"),
        ({"outcome": {"name": "x"}}, "outcome"),
        ({"outcome": {"success": 1}}, "outcome.success"),
        ({"outcome": {"score": "high"}}, "outcome.score"),
        ({"outcome": {"score": 1, "mood": 1}}, "outcome"),
        ({"outcome": {"score": 1, "name": "x" * 201}}, "outcome.name"),
        ({"thumb": "up", "index": -1}, "index"),
        ({"thumb": "up", "messages": MESSAGES}, "messages"),
        ({"thumb": "up", "answer": "x"}, "messages"),
        ({"thumb": "up", "messages": [], "answer": "x"}, "messages"),
        ({"thumb": "up", "messages": ["hi"], "answer": "x"}, "messages[0]"),
        (b'{"thumb": "up", "answer": "x", "messages": [{"content": ' + b"[" * 300 + b"]" * 300 + b"}]}", "messages"),
    ],
)
def test_bad_signals_are_refused_with_the_field_at_fault(body: Any, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parse_signal(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


async def test_a_bad_signal_gets_400_in_openais_shape_and_stores_nothing(house: House) -> None:
    house.serve()
    for body, param in (({"thumb": "sideways"}, "thumb"), ({"thumb": "up", "index": 1}, "index"), (b"\xff", None)):
        answer = await house.signal(body)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert set(error) == {"message", "type", "param", "code"}
    assert house.num_rows() == 0


async def test_the_same_key_and_signal_replay_the_stored_answer(house: House) -> None:
    house.serve()
    first = await house.signal(b'{"thumb": "up", "rating": 4}', idempotency_key="k-1")
    again = await house.signal(b'{"rating":4.0,"thumb":"up","comment":null}', idempotency_key="k-1")
    assert (again.status_code, again.content) == (200, first.content)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    quoted = await house.signal({"thumb": "up", "rating": 4}, idempotency_key='"k-1"')  # as the draft writes it
    assert quoted.content == first.content
    assert house.num_rows() == len(house.events()) == house.parts.relay.num_notified == 1


async def test_another_signal_under_a_used_key_gets_422(house: House) -> None:
    house.serve()
    house.serve(WHOLE.replace(ID.encode(), b"chatcmpl-other"))
    assert (await house.signal({"thumb": "up"}, idempotency_key="k-1")).status_code == 200
    for arguments in ({"body": {"thumb": "down"}}, {"body": {"thumb": "up"}, "completion_id": "chatcmpl-other"}):
        answer = await house.signal(**arguments, idempotency_key="k-1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert house.num_rows() == 1


async def test_a_key_is_the_apps_own(house: House) -> None:
    other = await house.make_key("app-2", "app")
    house.serve()
    house.serve(app="app-2")
    one = await house.signal({"thumb": "up"}, idempotency_key="k-1")
    two = await house.signal({"thumb": "down"}, idempotency_key="k-1", key=other)
    assert (one.status_code, two.status_code) == (200, 200)
    assert one.json()["id"] != two.json()["id"]


async def test_requests_that_race_under_one_key_make_one_signal(house: House) -> None:
    house.serve()
    answers = await asyncio.gather(*(house.signal({"thumb": "up"}, idempotency_key="k-1") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert house.num_rows() == len(house.events()) == 1


async def test_without_a_key_every_post_is_a_signal_of_its_own(house: House) -> None:
    house.serve()
    ids = {(await house.signal({"thumb": "up"})).json()["id"] for _ in range(3)}
    assert len(ids) == house.num_rows() == 3


async def test_a_replay_needs_the_completion_no_more(house: House) -> None:
    first = await house.signal({"thumb": "up", **GIVEN}, idempotency_key="k-1")
    assert (await house.signal({"thumb": "up", **GIVEN}, idempotency_key="k-1")).content == first.content


async def test_a_bad_idempotency_key_gets_400(house: House) -> None:
    house.serve()
    for key in ("", '""', "x" * 256, "a\tb"):
        answer = await house.signal({"thumb": "up"}, idempotency_key=key)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "idempotency-key")


async def test_another_apps_completion_is_unknown(house: House) -> None:
    house.serve(app="app-2")
    answer = await house.signal({"thumb": "up"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_completion")
    assert house.num_rows() == 0


async def test_an_unrecorded_completion_is_known_by_what_comes_along(house: House) -> None:
    assert (await house.signal({"thumb": "up"}, completion_id="chatcmpl-lost")).status_code == 404
    answer = await house.signal({"thumb": "up", **GIVEN}, completion_id="chatcmpl-lost", x_prefloop_user="ann")
    assert answer.status_code == 200
    [signal] = house.events()
    assert (signal.messages, signal.answer, signal.is_recorded) == (MESSAGES, "Fine.", False)
    assert (signal.checkpoint, signal.arm, signal.policy) == ("", None, "")
    assert signal.user == house.parts.secrets.keyed_hash("user", "app-1", "ann")


async def test_what_was_recorded_counts_more_than_what_comes_along(house: House) -> None:
    house.serve()
    assert (await house.signal({"thumb": "up", **GIVEN})).status_code == 200
    assert (house.events()[0].answer, house.events()[0].is_recorded) == ("Well.", True)


async def test_a_completion_that_cannot_be_read_keeps_its_signal(house: House) -> None:
    house.serve(WHOLE[:-9])
    assert (await house.signal({"thumb": "up"})).status_code == 200
    [signal] = house.events()
    assert (signal.is_recorded, signal.checkpoint, signal.answer) == (True, "c-000001-aaaaaaaaaaaa", None)


async def test_a_question_that_a_reader_might_not_read_is_left_out(house: House) -> None:
    house.serve(request=b'{"messages": [{"content": ' + b"[" * 900 + b"]" * 900 + b"}]}")
    assert (await house.signal({"thumb": "up"})).status_code == 200
    assert (house.events()[0].messages, house.events()[0].thumb) == (None, "up")


async def test_what_is_too_large_for_an_event_is_left_out_or_refused(tmp_path: Path) -> None:
    async with open_house(tmp_path, max_event_bytes=2000) as house:
        house.serve(request=json.dumps({"messages": [{"role": "user", "content": "x" * 3000}]}).encode())
        assert (await house.signal({"thumb": "up"})).status_code == 200
        assert (house.events()[0].messages, house.events()[0].thumb) == (None, "up")
        for completion_id, body in (
            (ID, {"comment": "x" * 1900}),
            (ID, {"comment": "x" * 3000}),
            ("chatcmpl-lost", {"thumb": "up", **GIVEN, "answer": "x" * 1900}),
        ):
            answer = await house.signal(body, completion_id=completion_id)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert house.num_rows() == 1


async def test_keys_need_the_scope_app_or_chooser(house: House) -> None:
    house.serve()
    assert (await house.signal({"thumb": "up"}, key=await house.make_key("app-1", "chooser"))).status_code == 200
    assert (await house.signal({"thumb": "up"}, key=await house.make_key("app-1", "operator"))).status_code == 403
    assert (await house.signal({"thumb": "up"}, key="pl_no_body")).status_code == 401
    answer = await house.http.post(f"/v1/completions/{ID}/signal", json={"thumb": "up"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_ids_that_no_engine_gives_are_unknown(house: House) -> None:
    for completion_id in ("%00", "a%0Ab", "x" * 301, "%ff"):
        assert (await house.signal({"thumb": "up"}, completion_id=completion_id)).status_code == 404


async def test_a_database_that_fails_gets_503_and_stores_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.serve()

    async def fail(fn: Any) -> None:
        raise DatabaseError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(house.parts.writer, "arun", fail)
        answer = await house.signal({"thumb": "up"}, idempotency_key="k-1")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert house.num_rows() == house.parts.relay.num_notified == 0
    assert (await house.signal({"thumb": "up"}, idempotency_key="k-1")).status_code == 200


async def test_a_store_of_completions_that_fails_gets_503(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(app: str, completion_id: str) -> None:
        raise DatabaseError("locked")

    monkeypatch.setattr(house.parts.completions, "find", fail)
    assert (await house.signal({"thumb": "up"})).status_code == 503
