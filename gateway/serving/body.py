"""Requests to engines and their answers as bytes: reads the few fields that are needed, replaces the top-level `model` alone.

A body is never re-modelled: everything that is not named here reaches the engine as it came. Refuses bodies in which
two readers could see two different models (a repeated or escaped top-level `model` key).
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from gateway.errors import bad_request

_ABSENT = msgspec.Raw(b'""')


class EngineRequest(msgspec.Struct, frozen=True):
    """What the gateway looks at in a request to an engine. The engine judges the fields' types; only syntax is ours."""

    model: str
    messages: msgspec.Raw = msgspec.Raw(b"[]")
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    stream: Any = None
    stream_options: Any = None
    n: Any = None
    temperature: Any = None
    seed: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None
    previous_response_id: Any = None
    background: Any = None
    priority: Any = msgspec.UNSET

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream, by the engine's lenient reading of booleans."""
        stream = self.stream
        return stream is not None and stream is not False and stream in _TRUE

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its token counts."""
        return isinstance(self.stream_options, dict) and self.stream_options.get("include_usage") in _TRUE

    @property
    def token_limit(self) -> int | None:
        """The most tokens of an answer, if the request says so."""
        limit = self.max_completion_tokens or self.max_tokens
        return limit if type(limit) is int else None

    def read_messages(self) -> list[dict[str, Any]]:
        """The messages; empty where the engine will refuse them."""
        try:
            return _messages_decoder.decode(self.messages)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return []


class _Message(msgspec.Struct):
    """A message that is text: decoding anything else fails."""

    content: str | None = None


_TRUE = (True, 1, "true", "True", "1", "on", "yes")
_decoder = msgspec.json.Decoder(EngineRequest)
_messages_decoder = msgspec.json.Decoder(list[dict[str, Any]])
_texts_decoder = msgspec.json.Decoder(list[_Message])
_KEY = b'"model"'
_VALUE = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("[^"\\]*")')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)
_MEDIA = frozenset({"image_url", "audio_url", "video_url", "input_audio", "file", "file_url", "file_data"})
_REMOTE = frozenset({"http", "https", "ftp", "file"})


def parse_request(body: bytes, *, allow_remote_media: bool = False) -> tuple[EngineRequest, tuple[int, int]]:
    """The request and the span of its `model` value. Raises ApiError 400."""
    try:
        request = _decoder.decode(body)
        if request.priority is not msgspec.UNSET:
            raise bad_request("`priority` is not for apps to set.", param="priority")
        if not allow_remote_media and not _is_text(request):
            _refuse_remote_media(body)
        return request, find_model(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        missing = re.search(r"required field `(\w+)`", message)
        param = missing[1] if missing else path.strip("`").lstrip(".").partition("[")[0] or None
        raise bad_request(f"Invalid request: {message}.", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def find_model(body: bytes) -> tuple[int, int]:
    """The span of the top-level `model` value, quotes included. Raises ApiError 400 unless there is exactly one, DecodeError.

    `body` is a valid JSON object that has the key. Where no `\\u` occurs, a key cannot be spelt with escapes, and what
    is there once is the key.
    """
    found = body.find(_KEY)
    value = None if found < 0 else _VALUE.match(body, found + 7)
    if value is not None and body.find(_KEY, found + 7) < 0 and b"\\u" not in body:
        return value.span(1)
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
    return b"%b%b%b" % (body[: span[0]], _encode_name(model), body[span[1] :])


def add_fields(body: bytes, fields: dict[str, Any]) -> bytes:
    """The body with fields added at its end, where readers let the last of two equal keys win."""
    return body.rstrip()[:-1] + b"," + msgspec.json.encode(fields)[1:]


@lru_cache(maxsize=1024)
def _encode_name(name: str) -> bytes:
    return msgspec.json.encode(name)


@lru_cache(maxsize=1024)
def find_restorer(checkpoint: str, alias: str) -> Callable[[bytes], bytes]:
    """What puts the alias in place of the checkpoint, in an answer or in whole events of one.

    Inside a string the quotes of the pattern would be escaped, so what matches is a key.
    """
    name = _encode_name(checkpoint)
    theirs, ours = b'"model":' + name, b'"model":' + _encode_name(alias)
    unusual = re.compile(rb'(?<!\\)"model"\s*:\s*' + re.escape(name))

    def restore(answer: bytes) -> bytes:
        restored = answer.replace(theirs, ours)
        if restored is not answer or name not in answer:
            return restored
        return unusual.sub(lambda _: ours, answer)

    return restore


def _is_text(request: EngineRequest) -> bool:
    """Whether all that is asked is plain text, so that there is nothing to fetch."""
    try:
        _texts_decoder.decode(request.messages)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return (request.prompt is _ABSENT or bytes(request.prompt).startswith(b'"')) and (
        request.input is _ABSENT or bytes(request.input).startswith(b'"')
    )


def _refuse_remote_media(body: bytes) -> None:
    """Nothing that engines would fetch for an app: it could reach what only they can reach."""
    whole = msgspec.json.decode(body)
    waiting = [whole.get(name) for name in ("messages", "input", "prompt")]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            for name, value in item.items():
                url = value.get("url") if isinstance(value, dict) else value
                if name in _MEDIA and isinstance(url, str) and url.strip().partition(":")[0].lower() in _REMOTE:
                    raise bad_request("Remote media is not fetched; send it inline.", param="messages")
                if isinstance(value, dict | list):
                    waiting.append(value)
