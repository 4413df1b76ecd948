"""Released events stay readable for ever: golden files, published schemas, and a check that they only grow."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from feedback.event_schemas import find_violations, render_schemas
from feedback.events import BODIES, Candidate, Comparison, Outcome, decode_event, encode_event, json_schemas

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[2] / "docs"
FILES = sorted(GOLDEN.glob("v*/*.json"))
RELEASED = sorted(GOLDEN.glob("v*/schemas/*.json"))


def read_golden(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    golden = json.loads(path.read_text())
    return {name: value.encode() for name, value in golden["headers"].items()}, golden["body"]


def contains(whole: Any, part: Any) -> bool:
    """Whether everything that `part` says, `whole` says too."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(name in whole and contains(whole[name], part[name]) for name in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    return type(whole) is type(part) and whole == part


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_released_events_are_read_and_written_as_they_were(path: Path) -> None:
    headers, body = read_golden(path)
    event = decode_event(headers, json.dumps(body).encode())
    written_headers, written = encode_event(event)
    assert written_headers == headers
    assert contains(json.loads(written), body)
    assert decode_event(written_headers, written) == event
    jsonschema.validate(body, json_schemas()[event.type])


def test_every_type_has_a_golden_file_with_and_without_its_optional_fields() -> None:
    for name, body in BODIES.items():
        kind = name.split(".")[1]
        fields = msgspec.structs.fields(body)
        required = {field.name for field in fields if field.required}
        full = read_golden(GOLDEN / "v1" / f"{kind}.full.json")[1]
        assert full.keys() == {field.name for field in fields}
        assert [field.name for field in fields if not field.required and full[field.name] == field.default] == []
        if required != full.keys():
            assert read_golden(GOLDEN / "v1" / f"{kind}.minimal.json")[1].keys() == required


def test_the_parts_of_golden_events_are_as_complete_as_the_events() -> None:
    choice = read_golden(GOLDEN / "v1/choice.full.json")[1]
    signal = read_golden(GOLDEN / "v1/signal.full.json")[1]
    minimal = read_golden(GOLDEN / "v1/choice.minimal.json")[1]["comparison"]["first"]
    parts: list[tuple[type[msgspec.Struct], dict[str, Any]]] = [
        (Comparison, choice["comparison"]),
        (Candidate, choice["comparison"]["first"]),
        (Candidate, choice["comparison"]["second"]),
        (Outcome, signal["outcome"]),
    ]
    for part, said in parts:
        assert said.keys() == {field.name for field in msgspec.structs.fields(part)}
    assert minimal.keys() == {field.name for field in msgspec.structs.fields(Candidate) if field.required}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.endswith("full")], ids=lambda path: path.stem)
def test_any_optional_field_may_be_absent(path: Path) -> None:
    headers, body = read_golden(path)
    kind = BODIES[headers["ce_type"].decode()]
    for field in msgspec.structs.fields(kind):
        if not field.required:
            less = {name: value for name, value in body.items() if name != field.name}
            data = decode_event(headers, json.dumps(less).encode()).data
            assert msgspec.structs.asdict(data)[field.name] == (
                field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            )


def test_headers_follow_the_kafka_binding_of_cloudevents() -> None:
    """CloudEvents 1.0, Kafka protocol binding 3.2, binary mode, and the attributes' own rules."""
    for path in FILES:
        event = decode_event(*_encoded(path))
        headers, value = encode_event(event)
        attributes = {name[3:]: text.decode() for name, text in headers.items() if name.startswith("ce_")}
        assert headers.keys() == {f"ce_{name}" for name in attributes} | {"content-type"}
        assert headers["content-type"] == b"application/json"  # datacontenttype, not prefixed
        assert {"specversion", "id", "source", "type"} <= attributes.keys()
        assert attributes["specversion"] == "1.0"
        assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in attributes)
        assert all(text and text.isprintable() for text in attributes.values())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", attributes["time"])  # RFC 3339
        assert re.fullmatch(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", attributes["source"])  # a URI reference
        assert attributes["partitionkey"] == event.key  # the key mapping of 3.1: also the record's key
        json.loads(value)  # the data as it is, not an envelope
        assert "specversion" not in json.loads(value)


def _encoded(path: Path) -> tuple[dict[str, bytes], bytes]:
    headers, body = read_golden(path)
    return headers, json.dumps(body).encode()


def test_published_schemas_are_what_the_code_says() -> None:
    found = {path.stem: path.read_text() for path in (DOCS / "schemas").glob("*.json")}
    assert found == render_schemas(), "run `make docs`"


def test_the_script_writes_the_schemas_and_clears_what_is_gone(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("render_schemas", DOCS / "render_schemas.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "prefloop.mood.v1.json").write_text("{}")
    module.write_schemas(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == BODIES.keys()


def test_every_released_type_is_kept() -> None:
    assert {path.stem for path in RELEASED} <= BODIES.keys()
    assert {path.stem for path in RELEASED if path.parts[-3] == "v1"} >= {
        "prefloop.comparison.v1", "prefloop.choice.v1", "prefloop.signal.v1", "prefloop.erasure.v1",
    }  # fmt: skip


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_schemas_only_grow_since_their_release(path: Path) -> None:
    assert find_violations(json.loads(path.read_text()), json_schemas()[path.stem]) == []


def comparison(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"]["Comparison"]
    return found


def candidate(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"]["Candidate"]
    return found


Change = Callable[[dict[str, Any]], Any]
BROKEN: list[tuple[str, Change]] = [
    ("$.comparison.tags: the field was removed", lambda s: comparison(s)["properties"].pop("tags")),
    ("$.comparison.first.text: the field was removed", lambda s: candidate(s)["properties"].pop("text")),
    ("$.strength: the field became required", lambda s: s["$defs"]["Choice"]["required"].append("strength")),
    ("$.channel: the field is no longer required", lambda s: s["$defs"]["Choice"]["required"].remove("channel")),
    (
        "$.mood: a new field is required",
        lambda s: s["$defs"]["Choice"].update(
            properties={**s["$defs"]["Choice"]["properties"], "mood": {"type": "string"}},
            required=[*s["$defs"]["Choice"]["required"], "mood"],
        ),
    ),
    (
        "$.chosen_at: type number became string",
        lambda s: s["$defs"]["Choice"]["properties"].update(chosen_at={"type": "string"}),
    ),
    (
        "$.strength: type null or number became number",
        lambda s: s["$defs"]["Choice"]["properties"].update(strength={"type": "number", "default": None}),
    ),
    (
        "$.preferred: the value 'skip' was removed",
        lambda s: s["$defs"]["Choice"]["properties"]["preferred"]["enum"].remove("skip"),
    ),
    (
        "$.comparison.second.arm: type enum became string",
        lambda s: candidate(s)["properties"].update(arm={"type": "string"}),
    ),
    (
        "$.comparison.messages[]: type object became string",
        lambda s: comparison(s)["properties"]["messages"].update(items={"type": "string"}),
    ),
    (
        "$.comparison.tags.*: type string became integer",
        lambda s: comparison(s)["properties"]["tags"].update(additionalProperties={"type": "integer"}),
    ),
    ("$.comparison.tags.*: type changed", lambda s: comparison(s)["properties"]["tags"].pop("additionalProperties")),
    ("$.harmful: the default changed", lambda s: s["$defs"]["Choice"]["properties"]["harmful"].update(default=True)),
]


@pytest.mark.parametrize(("violation", "change"), BROKEN, ids=[violation for violation, _ in BROKEN])
def test_a_change_that_breaks_readers_is_named(violation: str, change: Change) -> None:
    released = json_schemas()["prefloop.choice.v1"]
    current = copy.deepcopy(released)
    change(current)
    assert violation in find_violations(released, current)
    assert find_violations(released, copy.deepcopy(released)) == []


ADDED: list[tuple[str, Change]] = [
    ("an optional field", lambda s: s["$defs"]["Choice"]["properties"].update(mood={"type": "string", "default": ""})),
    ("a value", lambda s: s["$defs"]["Choice"]["properties"]["preferred"]["enum"].append("neither")),
    ("a text", lambda s: s["$defs"]["Choice"].update(description="What was said.", title="Said")),
    ("an order", lambda s: s["$defs"]["Choice"]["required"].reverse()),
    ("a name", lambda s: s.update({"$ref": "#/$defs/Said"}) or s["$defs"].update(Said=s["$defs"].pop("Choice"))),
]


@pytest.mark.parametrize("change", [change for _, change in ADDED], ids=[name for name, _ in ADDED])
def test_what_only_adds_is_allowed(change: Change) -> None:
    released = json_schemas()["prefloop.choice.v1"]
    current = copy.deepcopy(released)
    change(current)
    assert current != released
    assert find_violations(released, current) == []
