"""The chat request and answer as bytes: reads the few fields that are needed, replaces the top-level `model` alone.

A body is never re-modelled: everything that is not named here reaches the engine as it came. Refuses bodies in which
two readers could see two different models (a repeated or escaped top-level `model` key).
"""

import re
from typing import Any

import msgspec

from gateway.errors import ApiError, bad_request


class ChatRequest(msgspec.Struct, frozen=True):
    """What the gateway looks at in a chat request; unknown fields are checked for syntax and left alone."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: int | None = None
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None
    priority: Any = msgspec.UNSET

    @property
    def token_limit(self) -> int | None:
        """The most tokens of an answer, if the request says so."""
        return self.max_completion_tokens or self.max_tokens


_decoder = msgspec.json.Decoder(ChatRequest)
_MODEL_KEY = re.compile(rb'(?<!\\)"model"[ \t\r\n]*:')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)
_REMOTE = frozenset({"http", "https", "ftp", "file"})


def parse_chat_request(body: bytes) -> tuple[ChatRequest, tuple[int, int]]:
    """The request and the span of its `model` value. Raises ApiError 400."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        missing = re.search(r"required field `(\w+)`", message)
        param = missing[1] if missing else path.strip("`").lstrip(".").partition("[")[0] or None
        raise bad_request(f"Invalid request: {message}.", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if request.priority is not msgspec.UNSET:
        raise bad_request("`priority` is not for apps to set.", param="priority")
    if not request.messages:
        raise bad_request("`messages` is empty.", param="messages")
    _refuse_remote_media(request.messages)
    return request, find_model(body)


def find_model(body: bytes) -> tuple[int, int]:
    """The span of the top-level `model` value, quotes included. Raises ApiError 400 unless there is exactly one.

    `body` is a valid JSON object. Where no `\\u` occurs, a key cannot be spelt with escapes, and one match of the key
    in an object that has it is the one.
    """
    found = [match.end() for match in _MODEL_KEY.finditer(body)]
    if len(found) == 1 and b"\\u" not in body:
        value = _STRING.search(body, found[0])
        assert value is not None
        return value.span()
    return _scan_for_model(body)


def _scan_for_model(body: bytes) -> tuple[int, int]:
    spans: list[tuple[int, int]] = []
    depth = 0
    key: bytes | None = None
    expects_key = False
    for token in _TOKEN.finditer(body):
        text = token[0]
        first = text[:1]
        if first in b"{[":
            depth += 1
            expects_key = depth == 1
        elif first in b"}]":
            depth -= 1
        elif depth != 1:
            continue
        elif first == b",":
            expects_key = True
        elif first == b":":
            expects_key = False
        elif expects_key:
            key = text
            if text != b'"model"' and msgspec.json.decode(text) == "model":
                raise bad_request("The key `model` is written with escapes.", param="model")
        elif key == b'"model"':
            spans.append(token.span())
    if len(spans) != 1:
        raise bad_request("The key `model` must occur exactly once.", param="model")
    return spans[0]


def replace_span(body: bytes, span: tuple[int, int], model: str) -> bytes:
    """The body with another model."""
    return body[: span[0]] + msgspec.json.encode(model) + body[span[1] :]


def add_fields(body: bytes, fields: dict[str, Any]) -> bytes:
    """The body with fields added at its end, where readers let the last of two equal keys win."""
    return body.rstrip()[:-1] + b"," + msgspec.json.encode(fields)[1:]


def restore_model(answer: bytes, checkpoint: str, alias: str) -> bytes:
    """An answer (or one event of it) with the alias in place of the checkpoint, at the top level only.

    Inside a string the quotes of the pattern would be escaped, so the first match is a key; vLLM writes the top-level
    `model` before anything nested.
    """
    own, theirs = msgspec.json.encode(alias), msgspec.json.encode(checkpoint)
    compact = b'"model":' + theirs
    if compact in answer:
        return answer.replace(compact, b'"model":' + own, 1)
    return re.sub(rb'(?<!\\)"model"\s*:\s*' + re.escape(theirs), lambda _: b'"model":' + own, answer, count=1)


def _refuse_remote_media(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            for name in ("image_url", "audio_url", "video_url", "input_audio", "file"):
                value = part.get(name) if isinstance(part, dict) else None
                url = value.get("url") if isinstance(value, dict) else value
                if isinstance(url, str) and url.strip().partition(":")[0].lower() in _REMOTE:
                    raise ApiError(400, "Remote media is not fetched; send it inline.", param="messages")
