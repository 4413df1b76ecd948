"""Requests to engines and their answers as bytes: reads the few fields that are needed, replaces the top-level `model` alone.

A body is never re-modelled: everything that is not named here reaches the engine as it came. Fields that decide are read
as vLLM reads them, by pydantic's lenient rules, or refused. Refuses bodies in which two readers could see two different
models (a repeated or escaped top-level `model` key).
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
from pydantic import TypeAdapter, ValidationError

from gateway.errors import bad_request

_ABSENT = msgspec.Raw(b'""')
_MAX_DEPTH = 200  # far below where a reader with less stack than ours would give up


class EngineRequest(msgspec.Struct, frozen=True):
    """What the gateway looks at in a request to an engine. What is `Any` or raw here, only the engine judges."""

    model: str
    messages: msgspec.Raw = msgspec.Raw(b"[]")
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: int | None = None
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    echo: bool | None = None
    logprobs: Any = None
    prompt_logprobs: Any = None
    previous_response_id: Any = None
    background: Any = None
    priority: Any = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream."""
        return self.stream is True

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its token counts."""
        given = None if self.stream_options is None else self.stream_options.get("include_usage")
        try:
            return given is True or (given is not None and _BOOLEAN.validate_python(given) is True)
        except ValidationError:
            return False  # the engine will refuse it

    @property
    def token_limit(self) -> int | None:
        """The most tokens of an answer, if the request says so."""
        return self.max_completion_tokens or self.max_tokens

    def read_messages(self) -> list[dict[str, Any]]:
        """The messages; empty where they cannot be read."""
        try:
            return _messages_decoder.decode(self.messages)
        except (ValueError, RecursionError):
            return []

    def read_storable_messages(self) -> list[dict[str, Any]] | None:
        """The messages as every reader of an event can read them; None if there are none, or not such."""
        messages = self.read_messages()
        try:
            check_depth(messages)
        except ValueError:
            return None
        return messages or None


class _Message(msgspec.Struct):
    """A message that is text: decoding anything else fails."""

    content: str | None = None


_BOOLEAN, _INTEGER = TypeAdapter(bool | None), TypeAdapter(int | None)
_TEXT = TypeAdapter(str | None)
_READERS: dict[str, TypeAdapter[Any]] = {  # as vllm.entrypoints.openai declares these fields
    "model": TypeAdapter(str),
    "stream": _BOOLEAN,
    "stream_options": TypeAdapter(dict[str, Any] | None),
    "n": _INTEGER,
    "temperature": TypeAdapter(float | None),
    "seed": _INTEGER,
    "max_tokens": _INTEGER,
    "max_completion_tokens": _INTEGER,
    "user": _TEXT,
    "safety_identifier": _TEXT,
    "echo": _BOOLEAN,
}
_RAW = frozenset({"messages", "prompt", "input"})
_decoder = msgspec.json.Decoder(EngineRequest)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_messages_decoder = msgspec.json.Decoder(list[dict[str, Any]])
_texts_decoder = msgspec.json.Decoder(list[_Message])
_KEY = b'"model"'
_VALUE = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("[^"\\]*")')
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)
_MEDIA = frozenset({"image_url", "audio_url", "video_url", "input_audio", "file", "file_url", "file_data"})
_REMOTE = frozenset({"http", "https", "ftp", "file"})


def parse_request(body: bytes, *, allow_remote_media: bool = False) -> tuple[EngineRequest, tuple[int, int]]:
    """The request and the span of its `model` value. Raises ApiError 400."""
    try:
        request = _read_request(body)
        if request.priority is not None:
            raise bad_request("`priority` is not for apps to set.", param="priority")
        if not allow_remote_media and not _is_text(request):
            _refuse_remote_media(body)
        return request, find_model(body)
    except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def _read_request(body: bytes) -> EngineRequest:
    """Raises ApiError 400 for a field that no engine reads, and what msgspec raises for what is no JSON object."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        given = _fields_decoder.decode(body)
    fields: dict[str, Any] = {}
    for name in EngineRequest.__struct_fields__:
        if name in given:
            fields[name] = given[name] if name in _RAW else _read_field(name, given[name])
    if "model" not in fields:
        raise bad_request("Invalid request: `model` is missing.", param="model")
    return EngineRequest(**fields)


def _read_field(name: str, raw: msgspec.Raw) -> Any:
    reader = _READERS.get(name)
    try:
        value = msgspec.json.decode(raw)
        return value if reader is None else reader.validate_python(value)
    except (ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise bad_request(f"Invalid request: `{name}`: {reason}.", param=name) from None


def check_depth(value: Any, max_depth: int = _MAX_DEPTH) -> None:
    """Raises ValueError if lists and objects are nested so deeply that not every reader could read them."""
    if not isinstance(value, list | dict):
        return
    if max_depth == 0:
        raise ValueError("nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value:
        check_depth(inner, max_depth - 1)


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


_FINGERPRINT = b'"system_fingerprint"'
_USUAL_FINGERPRINT = re.compile(rb',"system_fingerprint":(?:null|"[^"\\]*")')
_STRINGS = re.compile(rb'("(?:[^"\\]|\\.)*")(?:\s*:\s*("(?:[^"\\]|\\.)*"))?', re.DOTALL)
_ANY_FINGERPRINT = re.compile(
    rb'(?P<comma>,\s*)?(?<!\\)"system_fingerprint"\s*:\s*(?:null|"(?:[^"\\]|\\.)*")(?(comma)|\s*,?)', re.DOTALL
)


@lru_cache(maxsize=1024)
def find_restorer(checkpoint: str, alias: str, *, shows_engine: bool = False) -> Callable[[bytes], bytes]:
    """What puts the alias in place of the checkpoint, in an answer or in whole events of one.

    Unless `shows_engine`, it takes out `system_fingerprint`, which tells engines, and so arms, apart. Inside a string the quotes of
    the patterns would be escaped, so what matches is a key.
    """
    name = _encode_name(checkpoint)
    theirs, ours = b'"model":' + name, b'"model":' + _encode_name(alias)

    def restore_pair(found: re.Match[bytes]) -> bytes:
        key, value = found.groups()
        if value != name or not _spells_model(key):
            return found[0]
        return ours

    def restore(answer: bytes) -> bytes:
        restored = answer.replace(theirs, ours)
        if checkpoint != alias and restored.rfind(name) >= 0:  # spelt as vLLM does not; faster than `in`
            restored = _STRINGS.sub(restore_pair, restored)
        return restored if shows_engine else _drop_fingerprints(restored)

    return restore


def _spells_model(key: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(key) == "model")
    except ValueError:  # half a surrogate pair, say
        return False


def _drop_fingerprints(answer: bytes) -> bytes:
    end = len(answer)
    while (start := answer.rfind(_FINGERPRINT, 0, end)) > 0:
        found = _USUAL_FINGERPRINT.match(answer, start - 1)
        if found is None:
            return _ANY_FINGERPRINT.sub(b"", answer)
        end = start - 1
        answer = answer[:end] + answer[found.end() :]
    return answer


def _is_text(request: EngineRequest) -> bool:
    """Whether all that is asked is plain text, so that there is nothing to fetch."""
    try:
        _texts_decoder.decode(request.messages)
    except (ValueError, RecursionError):
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
