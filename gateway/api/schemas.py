"""JSON Schemas of what goes in and out, for the OpenAPI document.

Bodies for engines name what the gateway reads and what every client sends; all other fields pass through, so the
schemas stay open. What the gateway makes itself comes from its own Structs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.access.keys import KeyRow
from gateway.api.choices import ChoiceRequest
from gateway.api.keys import KeyChange, KeyRequest
from gateway.api.signals import SignalRequest
from gateway.rollout.view import RolloutView

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    """The schema of that name in the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def build_schemas() -> dict[str, Schema]:
    """All schemas by name, but those of FastAPI's own bodies."""
    structs = (ChoiceRequest, KeyChange, KeyRequest, KeyRow, RolloutView, SignalRequest)
    _, made = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    return _ENGINE | _OURS | made


def _object(description: str, optional: str = "", /, **properties: Schema) -> Schema:
    """An open object; all properties are required but those named in `optional`."""
    required = [name for name in properties if name not in optional.split()]
    return {"type": "object", "description": description, "properties": properties, "required": required}


def _list(items: Schema, **more: Schema) -> Schema:
    return _object("", object={"const": "list"}, data=_array(items), **more) | {"description": "A list."}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_MODEL = STRING | {"description": "The policy's alias; operators may name a checkpoint.", "examples": ["default"]}
_STREAM = BOOLEAN | {"description": "Answer with server-sent events."}
_WHO: dict[str, Schema] = {
    "user": STRING | {"description": "The app's name for its user, stored as a keyed hash."},
    "safety_identifier": STRING | {"description": "Preferred to `user`."},
}
_USAGE = _or_null(OBJECT | {"description": "Token counts; of two answers: the prompt once, completions summed."})
_CHOICES = _array(OBJECT)

_ENGINE: dict[str, Schema] = {
    "ChatRequest": _object(
        "As vLLM takes it: fields that are not named here reach the engine as they came. `priority` is refused.",
        "stream stream_options n temperature seed max_tokens max_completion_tokens metadata user safety_identifier",
        model=_MODEL,
        messages=_array(_object("One message.", "content", role=STRING, content={})),
        stream=_STREAM,
        stream_options=OBJECT,
        n=INTEGER | {"description": "Requests for several answers are never paired."},
        temperature=NUMBER | {"description": "Requests with temperature 0 are never paired."},
        seed=INTEGER | {"description": "Requests with a seed are never paired."},
        max_tokens=INTEGER,
        max_completion_tokens=INTEGER,
        metadata=OBJECT | {"description": "`domain`, `language` and `task` are kept with a comparison."},
        **_WHO,
    ),
    "ChatCompletion": _object(
        "A chat completion. `comparison` is there if choices[0] and choices[1] are to be compared by a person.",
        "usage comparison",
        id=STRING,
        object={"const": "chat.completion"},
        created=INTEGER,
        model=STRING,
        choices=_CHOICES,
        usage=_USAGE,
        comparison=ref("Comparison"),
    ),
    "Comparison": _object(
        "What POST /v1/comparisons/{id}/choice needs: the token alone authorises. `expires_at` in epoch seconds.",
        id=STRING,
        token=STRING,
        expires_at=INTEGER,
    ),
    "CompletionRequest": _object("As vLLM takes it.", "prompt stream", model=_MODEL, prompt={}, stream=_STREAM),
    "Completion": _object(
        "A text completion.",
        "usage",
        id=STRING,
        object=STRING,
        created=INTEGER,
        model=STRING,
        choices=_CHOICES,
        usage=_USAGE,
    ),
    "EmbeddingRequest": _object("As vLLM takes it.", "input", model=_MODEL, input={}),
    "Embeddings": _list(OBJECT, model=STRING),
    "ResponsesRequest": _object(
        "As vLLM takes it, without state: `previous_response_id` and `background` are refused.",
        "input stream",
        model=_MODEL,
        input={},
        stream=_STREAM,
    ),
    "Response": _object("A response.", id=STRING, object={"const": "response"}, model=STRING, output=_array(OBJECT)),
    "TokenizeRequest": _object(
        "As vLLM takes it.", "prompt messages", model=_MODEL, prompt=STRING, messages=_array(OBJECT)
    ),
    "Tokens": _object("Tokens of a text.", count=INTEGER, tokens=_array(INTEGER)),
    "DetokenizeRequest": _object("As vLLM takes it.", "tokens", model=_MODEL, tokens=_array(INTEGER)),
    "Text": _object("The text of tokens.", prompt=STRING),
    "Event": _object(
        "One server-sent event. A failure in the middle is an event with an `error`. Of two answers, the chunks are told "
        "apart by `index`, and the last that has a finish_reason carries the `comparison`.",
        data=STRING | {"description": "JSON, or `[DONE]` at the end."},
    ),
}

_CHECKPOINT = _object(
    "A checkpoint.",
    id=STRING,
    number=INTEGER,
    parent=_or_null(STRING),
    digest=STRING,
    status=STRING,
    metrics=OBJECT,
    created_at=NUMBER,
)

_OURS: dict[str, Schema] = {
    "Signal": _object(
        "A signal that is stored.",
        id=STRING,
        object={"const": "completion.signal"},
        completion_id=STRING,
        created=INTEGER,
    ),
    "Error": _object(
        "Every refusal: OpenAI's shape.",
        error=_object(
            "`code` is a word for programs (an engine's is a number), `param` the field at fault.",
            message=STRING,
            type=STRING,
            param=_or_null(STRING),
            code={"type": ["string", "integer", "null"]},
        ),
    ),
    "Model": _object("A model.", id=STRING, object={"const": "model"}, created=INTEGER, owned_by=STRING),
    "Models": _list(ref("Model")),
    "Choice": _object("What was stored.", id=STRING, object={"const": "comparison.choice"}, preferred=STRING),
    "Metrics": STRING | {"description": "Prometheus' text format."},
    "OpenAPI": OBJECT | {"description": "OpenAPI 3.1."},
    "Health": _object("`reason` says why it is not ready.", "reason", status=STRING, reason=STRING),
    "Keys": _list(ref("KeyRow")),
    "NewKey": {"allOf": [ref("KeyRow"), _object("", key=STRING)], "description": "The only time the key is shown."},
    "RevokedKey": _object("A key that works no more.", id=STRING, object={"const": "key"}, revoked={"const": True}),
    "Checkpoint": _CHECKPOINT,
    "Checkpoints": _object("All checkpoints.", data=_array(ref("Checkpoint"))),
    "RegisteredCheckpoint": _object("What was taken.", id=STRING, digest=STRING, number=INTEGER, status=STRING),
    "RolledBack": {"anyOf": [ref("RolloutView"), ref("Checkpoint")]},
    "Rollouts": _object("Newest first.", data=_array(ref("RolloutView"))),
    "Status": _object(
        "What serves, the rollout that is on, and counters since the start.",
        policy=STRING,
        preset=STRING,
        stable=_or_null(ref("Checkpoint")),
        canary=_or_null(ref("Checkpoint")),
        rollout=_or_null(ref("RolloutView")),
        counters=OBJECT,
        canary_first_answer_at=OBJECT,
        controller=OBJECT,
        swap=OBJECT,
        engines=_array(ref("Engine")),
    ),
    "Engine": _object(
        "One engine as this gateway sees it. `checkpoint`: the whole model it holds, null where it takes adapters.",
        url=STRING,
        checkpoint=_or_null(STRING),
        up=BOOLEAN,
        breaker=STRING,
        is_hung=BOOLEAN,
        is_withdrawn=BOOLEAN,
        in_flight=INTEGER,
        adapters=_array(STRING),
        proven=_array(STRING),
    ),
    "Engines": _object(
        "What wants an engine, and what is there.",
        wanted=_array(_object("A whole model.", checkpoint=STRING, path=STRING, digest=STRING, status=STRING)),
        data=_array(ref("Engine")),
    ),
    "RegisteredEngine": _object("What was taken.", url=STRING, checkpoint=STRING, registered_at=NUMBER),
    "Interval": _object("An estimate and its 95% interval.", num=INTEGER, estimate=NUMBER, low=NUMBER, high=NUMBER),
    "Bias": _object(
        "Each user counts once. `finish_effect`: how much likelier the answer shown first is chosen when it was complete first.",
        is_biased=BOOLEAN,
        shown_first=ref("Interval"),
        finished_first=ref("Interval"),
        finish_effect=ref("Interval"),
    ),
    "WithdrawnEngine": _object(
        "Nothing more goes there. `in_flight`: this gateway's requests that have not ended.",
        url=STRING,
        was_registered=BOOLEAN,
        in_flight=INTEGER,
    ),
}
