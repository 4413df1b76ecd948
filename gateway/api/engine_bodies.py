"""What apps send to engines and get from them, as the OpenAPI document shows it.

These bodies pass through: only fields that the gateway reads or every client sends are named, and all others may come.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Model = Annotated[str, Meta(description="The policy's alias; operators may name a checkpoint.", examples=["default"])]
Stream = Annotated[bool, Meta(description="Answer with server-sent events.")] | UnsetType
Usage = (
    Annotated[dict[str, Any], Meta(description="Token counts; of two answers: the prompt once, completions summed.")]
    | None
    | UnsetType
)
Object = dict[str, Any]


class Message(msgspec.Struct):
    """One message."""

    role: str
    content: Any = UNSET


class ChatRequest(msgspec.Struct, kw_only=True):
    """As vLLM takes it: fields that are not named here reach the engine as they came. `priority` is refused."""

    model: Model
    messages: list[Message]
    stream: Stream = UNSET
    stream_options: Object | UnsetType = UNSET
    n: Annotated[int, Meta(description="Requests for several answers are never paired.")] | UnsetType = UNSET
    temperature: Annotated[float, Meta(description="Requests with 0 are never paired.")] | UnsetType = UNSET
    seed: Annotated[int, Meta(description="Requests with a seed are never paired.")] | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET
    max_completion_tokens: int | UnsetType = UNSET
    metadata: (
        Annotated[Object, Meta(description="`domain`, `language` and `task` are kept with a comparison.")] | UnsetType
    ) = UNSET
    user: Annotated[str, Meta(description="The app's name for its user, stored as a keyed hash.")] | UnsetType = UNSET
    safety_identifier: Annotated[str, Meta(description="Preferred to `user`.")] | UnsetType = UNSET


class ComparisonOffer(msgspec.Struct):
    """What POST /v1/comparisons/{id}/choice needs: the token alone authorises. `expires_at` in epoch seconds."""

    id: str
    token: str
    expires_at: int


class ChatCompletion(msgspec.Struct, kw_only=True):
    """A chat completion. `comparison` is there if choices[0] and choices[1] are to be compared by a person."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Object]
    usage: Usage = UNSET
    comparison: ComparisonOffer | UnsetType = UNSET


class CompletionRequest(msgspec.Struct, kw_only=True):
    """As vLLM takes it."""

    model: Model
    prompt: Any = UNSET
    stream: Stream = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A text completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Object]
    usage: Usage = UNSET


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """As vLLM takes it."""

    model: Model
    input: Any = UNSET


class EmbeddingList(msgspec.Struct):
    """Embeddings of texts."""

    object: Literal["list"]
    data: list[Object]
    model: str


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """As vLLM takes it, without state: `previous_response_id` and `background` are refused."""

    model: Model
    input: Any = UNSET
    stream: Stream = UNSET


class ModelResponse(msgspec.Struct):
    """A response."""

    id: str
    object: Literal["response"]
    model: str
    output: list[Object]


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """As vLLM takes it."""

    model: Model
    prompt: str | UnsetType = UNSET
    messages: list[Object] | UnsetType = UNSET


class TokenList(msgspec.Struct):
    """Tokens of a text."""

    count: int
    tokens: list[int]


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """As vLLM takes it."""

    model: Model
    tokens: list[int] | UnsetType = UNSET


class Text(msgspec.Struct):
    """The text of tokens."""

    prompt: str


class Event(msgspec.Struct):
    """One server-sent event. A failure in the middle is an event with an `error`.

    Of two answers, the chunks are told apart by `index`, and the last that has a finish_reason carries the `comparison`.
    """

    data: Annotated[str, Meta(description="JSON, or `[DONE]` at the end.")]
