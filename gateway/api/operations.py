"""What the OpenAPI document says of each address: who may ask, what goes in, and every answer that can come out.

FastAPI knows the addresses, their parameters and its own bodies; the rest is here. 500 is not an answer: it is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass

APPS, OPERATORS, MACHINES = "apps", "operators", "machines"
TAGS = {
    APPS: "What apps call, most of it as OpenAI's API has it.",
    OPERATORS: "Checkpoints, rollouts and keys: needs a key of scope operator or admin.",
    MACHINES: "What monitoring and makers of clients read.",
}

REFUSALS = {
    400: "The request is not valid; `param` names what is wrong with it.",
    401: "The key, or the comparison's token, is missing or wrong.",
    403: "The key lacks the scope.",
    404: "There is no such thing, or the engine's model cannot do this.",
    405: "This address takes other methods.",
    408: "The request did not come in time.",
    409: "Something else has happened or was said before.",
    410: "The comparison has expired.",
    413: "The body is too large.",
    422: "The engine cannot do what is asked for, or an idempotency key was used for something else.",
    429: "A limit of the key is used up.",
    431: "The head of the request is too large.",
    503: "Nobody can answer or store it now: ask again.",
    504: "The engine did not answer in time.",
}


@dataclass(frozen=True)
class Operation:
    """One method of one address. `answers`: schemas of JSON by status; `refusals`: statuses with an error."""

    tag: str
    summary: str
    answers: dict[int, str]
    refusals: frozenset[int]
    body: str = ""
    headers: tuple[str, ...] = ()
    needs_key: bool = True
    may_stream: bool = False
    is_text: bool = False


_OF_ANY = frozenset({400, 408, 431})  # the server's own: of what is not HTTP, dawdles, or has too large a head
_OF_KEYS = frozenset({401, 403})
_OF_ENGINES = _OF_KEYS | {404, 413, 422, 429, 503, 504}
_WHO = ("x-prefloop-user", "x-prefloop-conversation")


def _engine(
    summary: str, body: str, answer: str, *, headers: tuple[str, ...] = _WHO, may_stream: bool = False
) -> Operation:
    """What an engine answers to an app's key."""
    return Operation(APPS, summary, {200: answer}, _OF_ANY | _OF_ENGINES, body, headers, may_stream=may_stream)


def _operator(summary: str, answers: dict[int, str], *refusals: int, body: str = "") -> Operation:
    """What operators may ask for. FastAPI describes the bodies that are not named here."""
    return Operation(OPERATORS, summary, answers, _OF_ANY | _OF_KEYS | {413, 503, *refusals}, body)


def _machine(summary: str, answers: dict[int, str], *refusals: int, is_text: bool = False) -> Operation:
    """What anybody may ask for."""
    return Operation(MACHINES, summary, answers, _OF_ANY | {*refusals}, needs_key=False, is_text=is_text)


OPERATIONS = {
    "POST /v1/chat/completions": _engine(
        "Answer a conversation, once or with two candidates to compare",
        "ChatRequest",
        "ChatCompletion",
        headers=(*_WHO, "x-prefloop-compare"),
        may_stream=True,
    ),
    "POST /v1/completions": _engine("Complete a text", "CompletionRequest", "Completion", may_stream=True),
    "POST /v1/embeddings": _engine("Embed texts", "EmbeddingRequest", "Embeddings"),
    "POST /v1/responses": _engine("Answer, stateless", "ResponsesRequest", "Response", may_stream=True),
    "POST /tokenize": _engine("Split a text into tokens", "TokenizeRequest", "Tokens"),
    "POST /detokenize": _engine("Make a text of tokens", "DetokenizeRequest", "Text"),
    "GET /v1/models": Operation(APPS, "List what may be asked for", {200: "Models"}, _OF_ANY | _OF_KEYS),
    "GET /v1/models/{name}": Operation(APPS, "Describe a model", {200: "Model"}, _OF_ANY | _OF_KEYS | {404}),
    "POST /v1/comparisons/{comparison_id}/choice": Operation(
        APPS,
        "Say which of two answers is better; the comparison's token authorises",
        {200: "Choice"},
        _OF_ANY | {401, 404, 409, 410, 413, 503},
        "ChoiceRequest",
        needs_key=False,
    ),
    "POST /v1/completions/{completion_id}/signal": Operation(
        APPS,
        "Say what became of an answer: thumb, rating, edited text, outcome, comment",
        {200: "Signal"},
        _OF_ANY | _OF_KEYS | {404, 413, 422, 503},
        "SignalRequest",
        headers=("x-prefloop-user", "idempotency-key"),
    ),
    "GET /operator/v1/status": _operator("Show what serves and how it goes", {200: "Status"}),
    "GET /operator/v1/checkpoints": _operator("List the checkpoints", {200: "Checkpoints"}),
    "POST /operator/v1/checkpoints": _operator(
        "Register a checkpoint; 200 if it was known", {200: "RegisteredCheckpoint", 201: "RegisteredCheckpoint"}
    ),
    "DELETE /operator/v1/checkpoints/{checkpoint}": _operator(
        "Give up a checkpoint that nothing needs, so that its files may go", {200: "Checkpoint"}, 404, 409
    ),
    "GET /operator/v1/rollouts": _operator("List the rollouts", {200: "Rollouts"}),
    "POST /operator/v1/rollouts": _operator(
        "Put a checkpoint, or stable itself, on trial", {201: "Checkpoint"}, 404, 409
    ),
    "GET /operator/v1/rollouts/{rollout}": _operator("Show a rollout", {200: "RolloutView"}, 404),
    "POST /operator/v1/rollouts:rollback": _operator(
        "Go back: while baking at once, otherwise by a trial of stable's parent", {201: "RolledBack"}, 404, 409
    ),
    "GET /operator/v1/engines": _operator(
        "List the whole models that want an engine, and the engines", {200: "Engines"}
    ),
    "POST /operator/v1/engines": _operator(
        "Register an engine that serves a whole model; 200 if it was known",
        {200: "RegisteredEngine", 201: "RegisteredEngine"},
        404,
        409,
    ),
    "DELETE /operator/v1/engines": _operator("Withdraw an engine; harmless to repeat", {200: "WithdrawnEngine"}),
    "GET /operator/v1/feedback/bias": _operator(
        "Show whether people choose by place, or by which answer was there first", {200: "Bias"}
    ),
    "GET /operator/v1/keys": _operator("List the keys", {200: "Keys"}),
    "POST /operator/v1/keys": _operator("Make a key", {201: "NewKey"}, body="KeyRequest"),
    "PATCH /operator/v1/keys/{key_id}": _operator("Change a key's limits", {200: "KeyRow"}, 404, body="KeyChange"),
    "DELETE /operator/v1/keys/{key_id}": _operator("Revoke a key", {200: "RevokedKey"}, 404),
    "GET /livez": _machine("Say that the process lives", {200: "Health"}),
    "GET /readyz": _machine("Say whether requests can be answered", {200: "Health", 503: "Health"}),
    "GET /metrics": _machine("Show the metrics, as Prometheus reads them", {200: "Metrics"}, 503, is_text=True),
    "GET /openapi.json": _machine("Show this document", {200: "OpenAPI"}),
} | {
    f"POST /operator/v1/rollouts/{{rollout}}:{action}": _operator(summary, {200: "RolloutView"}, 404, 405, 409)
    for action, summary in {
        "approve": "Promote the canary, as what was seen of it says",
        "promote": "Promote the canary past a gate, with a written reason: admins only",
        "abort": "End the rollout",
        "pause": "Hold the rollout",
        "resume": "Let the rollout go on",
    }.items()
}
