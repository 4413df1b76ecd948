from __future__ import annotations

import msgspec
import pytest

from feedback.errors import FutureVersion, PoisonEvent
from feedback.events import BODIES, Choice, Erasure, Event, Signal, decode_event, encode_event, json_schemas, new_event
from tests.feedback.samples import make_choice, make_comparison, make_signal

GOLDEN_ERASURE = b'{"subject":"5ub","created_at":1.5}'
GOLDEN_SHORT_SIGNAL = b'{"completion_id":"chatcmpl-1","kind":"continued","value":-1,"created_at":1.5}'
GOLDEN_SIGNAL = (
    b'{"completion_id":"chatcmpl-1","kind":"said","value":null,"messages":[{"role":"user","content":"Hi"}],'
    b'"answer":"Willemstad.","created_at":1002.5,"prompt":null,"index":0,"is_recorded":true,"completed_at":1000.0,'
    b'"policy":"default","app":"app-1","user":"user-1","conversation":"conv-1","checkpoint":"c-000000-aaaaaaaaaaaa",'
    b'"digest":"aa","arm":"stable","thumb":"up","rating":4.0,"scale":5,"edited_text":"Willemstad!",'
    b'"outcome":{"name":"quiz","success":true,"score":0.5},"comment":"Right."}'
)


@pytest.mark.parametrize(
    "data",
    [
        make_comparison(),
        make_choice(),
        Signal(completion_id="chatcmpl-1", kind="continued", value=-1, created_at=1.5),
        make_signal(),
        Erasure(subject="5ub", created_at=1.5),
    ],
)
def test_every_event_survives_the_journey(data: object) -> None:
    event = new_event(data, source="test", now=1234.567891, event_id="e1")  # type: ignore[arg-type]
    assert decode_event(*encode_event(event)) == event


def test_headers_are_cloudevents_attributes() -> None:
    event = new_event(make_choice(), source="prefloop/gateway", now=0.25, event_id="e1")
    headers, _ = encode_event(event)
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"e1",
        "ce_type": b"prefloop.choice.v1",
        "ce_source": b"prefloop/gateway",
        "ce_time": b"1970-01-01T00:00:00.250000+00:00",
        "ce_partitionkey": b"cmp-1",
        "content-type": b"application/json",
    }


def test_event_ids_are_unique() -> None:
    assert len({new_event(make_choice(), source="test", now=0.0).id for _ in range(100)}) == 100


def encoded() -> tuple[dict[str, bytes], bytes]:
    return encode_event(new_event(make_choice(), source="test", now=1.0, event_id="e1"))


def test_released_bytes_stay_readable() -> None:
    headers, _ = encoded()
    event = decode_event({**headers, "ce_type": b"prefloop.erasure.v1"}, GOLDEN_ERASURE)
    assert event.data == Erasure(subject="5ub", created_at=1.5)
    event = decode_event({**headers, "ce_type": b"prefloop.signal.v1"}, GOLDEN_SHORT_SIGNAL)
    assert event.data == Signal(completion_id="chatcmpl-1", kind="continued", value=-1, created_at=1.5)
    event = decode_event({**headers, "ce_type": b"prefloop.signal.v1"}, GOLDEN_SIGNAL)
    assert event.data == make_signal(messages=[{"role": "user", "content": "Hi"}], digest="aa")


def test_fields_of_later_releases_are_ignored() -> None:
    headers, body = encoded()
    wider = msgspec.json.encode({**msgspec.json.decode(body), "mood": "good"})
    event = decode_event(headers, wider)
    assert isinstance(event, Event) and isinstance(event.data, Choice)


@pytest.mark.parametrize("event_type", [b"prefloop.choice.v2", b"prefloop.mood.v1"])
def test_types_of_later_releases_are_told_from_poison(event_type: bytes) -> None:
    headers, body = encoded()
    with pytest.raises(FutureVersion):
        decode_event({**headers, "ce_type": event_type}, body)


@pytest.mark.parametrize(
    ("changes", "body"),
    [
        ({"ce_type": b"com.example.order"}, None),
        ({"ce_type": b"\xff"}, None),
        ({"ce_id": b""}, None),
        ({"ce_time": b"yesterday"}, None),
        ({}, b""),
        ({}, b"{}"),
        ({}, b'{"preferred": "both"}'),
        ({}, b"\xff\xfe"),
        ({}, b"[" * 100_000),
    ],
)
def test_unreadable_events_are_poison(changes: dict[str, bytes], body: bytes | None) -> None:
    headers, good = encoded()
    with pytest.raises(PoisonEvent):
        decode_event({**headers, **changes}, good if body is None else body)


@pytest.mark.parametrize("name", ["ce_type", "ce_id", "ce_source", "ce_time"])
def test_missing_attributes_are_poison(name: str) -> None:
    headers, body = encoded()
    del headers[name]
    with pytest.raises(PoisonEvent, match=name):
        decode_event(headers, body)


def test_every_type_has_a_schema() -> None:
    schemas = json_schemas()
    assert schemas.keys() == BODIES.keys()
    assert "preferred" in schemas["prefloop.choice.v1"]["$defs"]["Choice"]["required"]
