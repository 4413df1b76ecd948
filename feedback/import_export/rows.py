"""One row of an exported file for one event, and back, losing nothing.

`prompt`, `chosen`, `rejected` (of signals `prompt`, `completion`, `label`) are columns as TRL reads them; all else of
the event is in columns of its own, flat enough for Parquet and for Hugging Face datasets. Text and metadata are written
once: what a user changes in the file is what comes back. Pure.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec.structs import asdict

from feedback.errors import ImportExportError
from feedback.events import (
    Arm,
    Asked,
    Candidate,
    Choice,
    Comparison,
    Event,
    Outcome,
    Position,
    Preferred,
    Share,
    Signal,
)

CHOICE: Final = "prefloop.choice.v1"
SIGNAL: Final = "prefloop.signal.v1"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message as TRL's chat templates take it."""

    role: str
    content: str


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """One tag: Parquet and datasets have no columns of arbitrary keys."""

    name: str
    value: str


class CandidateColumns(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate; text is None where `chosen` and `rejected` have it."""

    completion_id: str
    text: str | None = None
    checkpoint: str
    digest: str
    arm: Arm
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seed: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seconds_to_finish: float | None = None
    token_ids: list[int] | None = None
    reasoning: str | None = None
    tool_calls_json: str | None = None
    top_p: float | None = None


class ChoiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A choice. chosen and rejected are None for ties, both_bad and skips; prompt_json is the prompt where messages
    hold more than a role and a text.
    """

    prompt: list[Message]
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None
    event_id: str
    event_type: Literal["prefloop.choice.v1"]
    event_source: str
    event_time: float
    comparison_id: str
    policy: str
    app: str
    user: str
    conversation: str
    preferred: Preferred
    strength: float | None = None
    harmful: bool = False
    seconds_to_decide: float
    channel: str
    chosen_at: float
    asked: Asked
    propensity: float
    share: Share = ""
    engine: str
    rollout: str | None = None
    weight: float = 0.0
    created_at: float
    expires_at: float
    finished_first: Position | None = None
    tags: list[Tag] = []
    first: CandidateColumns
    second: CandidateColumns
    prompt_json: str | None = None
    prompt_token_ids: list[int] | None = None
    tools_json: str | None = None
    chat_template_kwargs_json: str | None = None


class SignalRow(msgspec.Struct, frozen=True, kw_only=True):
    """A signal. label is True for thumbs up; text_prompt is the prompt of a text completion."""

    prompt: list[Message] | None = None
    completion: list[Message] | None = None
    label: bool | None = None
    event_id: str
    event_type: Literal["prefloop.signal.v1"]
    event_source: str
    event_time: float
    completion_id: str
    kind: str
    created_at: float
    index: int = 0
    is_recorded: bool = False
    completed_at: float | None = None
    policy: str = ""
    app: str = ""
    user: str = ""
    conversation: str = ""
    checkpoint: str = ""
    digest: str = ""
    arm: Arm | None = None
    rating: float | None = None
    scale: int | None = None
    edited_text: str | None = None
    outcome: Outcome | None = None
    comment: str | None = None
    text_prompt: str | None = None
    prompt_json: str | None = None
    value_json: str | None = None
    tags: list[Tag] = []
    finish_reason: str | None = None
    reasoning: str | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    tools_json: str | None = None
    chat_template_kwargs_json: str | None = None
    tool_calls_json: str | None = None


Row = ChoiceRow | SignalRow
_OTHERWISE = ("prompt", "tags")  # columns of another form than the field of this name
_SAME = [name for name in SignalRow.__struct_fields__ if name in Signal.__struct_fields__ and name not in _OTHERWISE]
_OF_CHOICE = ("preferred", "strength", "harmful", "seconds_to_decide", "channel", "chosen_at")
_OF_COMPARISON = (
    "policy", "app", "user", "conversation", "asked", "propensity", "share", "engine", "rollout", "weight", "created_at",
    "expires_at", "finished_first", "prompt_token_ids",
)  # fmt: skip


def make_row(event: Event) -> Row | None:
    """The row of a choice or a signal; None for other events."""
    match event.data:
        case Choice() as choice:
            return _make_choice_row(event, choice)
        case Signal() as signal:
            return _make_signal_row(event, signal)
    return None


def read_row(row: Row) -> Event:
    """The event of a row. Raises ImportExportError if its columns contradict each other."""
    data: Choice | Signal = _read_choice(row) if isinstance(row, ChoiceRow) else _read_signal(row)
    key = data.comparison.id if isinstance(data, Choice) else data.completion_id
    return Event(id=row.event_id, type=row.event_type, source=row.event_source, key=key, time=row.event_time, data=data)


def is_trainable(row: Row) -> bool:
    """Whether TRL can learn from it: a decided choice, or a thumb on an answer whose prompt is known."""
    if isinstance(row, ChoiceRow):
        return row.chosen is not None
    return None not in (row.prompt, row.completion, row.label)


def _make_choice_row(event: Event, choice: Choice) -> ChoiceRow:
    comparison = choice.comparison
    prompt, prompt_json = _split_messages(comparison.messages)
    answers = [[_answer(candidate.text)] for candidate in (comparison.first, comparison.second)]
    is_decided = choice.preferred in ("first", "second")
    chosen, rejected = answers if choice.preferred == "first" else answers[::-1]
    return ChoiceRow(
        prompt=prompt,
        chosen=chosen if is_decided else None,
        rejected=rejected if is_decided else None,
        event_id=event.id,
        event_type=CHOICE,
        event_source=event.source,
        event_time=event.time,
        comparison_id=comparison.id,
        **{name: getattr(choice, name) for name in _OF_CHOICE},
        **{name: getattr(comparison, name) for name in _OF_COMPARISON},
        tags=_list_tags(comparison.tags),
        first=_make_columns(comparison.first, has_text=not is_decided),
        second=_make_columns(comparison.second, has_text=not is_decided),
        prompt_json=prompt_json,
        tools_json=_encode(comparison.tools),
        chat_template_kwargs_json=_encode(comparison.chat_template_kwargs),
    )


def _read_choice(row: ChoiceRow) -> Choice:
    if row.preferred in ("first", "second"):
        texts = [_text(row.chosen, "chosen"), _text(row.rejected, "rejected")]
        first, second = texts if row.preferred == "first" else texts[::-1]
    elif row.first.text is None or row.second.text is None:
        raise ImportExportError(f"`preferred` is {row.preferred}, but `first.text` or `second.text` is missing")
    else:
        first, second = row.first.text, row.second.text
    comparison = Comparison(
        id=row.comparison_id,
        messages=_join_messages(row.prompt, row.prompt_json),
        first=_read_candidate(row.first, first),
        second=_read_candidate(row.second, second),
        **_read_asked(row),
        **{name: getattr(row, name) for name in _OF_COMPARISON},
    )
    return Choice(comparison=comparison, **{name: getattr(row, name) for name in _OF_CHOICE})


def _make_signal_row(event: Event, signal: Signal) -> SignalRow:
    prompt, prompt_json = (None, None) if signal.messages is None else _split_messages(signal.messages)
    return SignalRow(
        prompt=prompt,
        completion=None if signal.answer is None else [_answer(signal.answer)],
        label=None if signal.thumb is None else signal.thumb == "up",
        event_id=event.id,
        event_type=SIGNAL,
        event_source=event.source,
        event_time=event.time,
        **{name: getattr(signal, name) for name in _SAME},
        text_prompt=signal.prompt,
        prompt_json=prompt_json,
        value_json=_encode(signal.value),
        tags=_list_tags(signal.tags),
        tools_json=_encode(signal.tools),
        chat_template_kwargs_json=_encode(signal.chat_template_kwargs),
        tool_calls_json=_encode(signal.tool_calls),
    )


def _read_signal(row: SignalRow) -> Signal:
    return Signal(
        messages=None if row.prompt is None else _join_messages(row.prompt, row.prompt_json),
        answer=None if row.completion is None else _text(row.completion, "completion"),
        thumb=None if row.label is None else "up" if row.label else "down",
        prompt=row.text_prompt,
        value=_decode(row.value_json, Any, "value_json"),
        tool_calls=_decode(row.tool_calls_json, list[dict[str, Any]], "tool_calls_json"),
        **_read_asked(row),
        **{name: getattr(row, name) for name in _SAME},
    )


def _make_columns(candidate: Candidate, *, has_text: bool) -> CandidateColumns:
    columns = asdict(candidate)
    columns["tool_calls_json"] = _encode(columns.pop("tool_calls"))
    return CandidateColumns(**{**columns, "text": candidate.text if has_text else None})


def _read_candidate(columns: CandidateColumns, text: str) -> Candidate:
    fields = asdict(columns)
    calls = _decode(fields.pop("tool_calls_json"), list[dict[str, Any]], "tool_calls_json")
    return Candidate(**{**fields, "text": text, "tool_calls": calls})


def _list_tags(tags: dict[str, str]) -> list[Tag]:
    return [Tag(name=name, value=value) for name, value in tags.items()]


def _read_asked(row: Row) -> dict[str, Any]:
    """The fields of what was asked that a row has in other forms."""
    return {
        "tools": _decode(row.tools_json, list[dict[str, Any]], "tools_json"),
        "chat_template_kwargs": _decode(row.chat_template_kwargs_json, dict[str, Any], "chat_template_kwargs_json"),
        "tags": {tag.name: tag.value for tag in row.tags},
    }


def _answer(text: str) -> Message:
    return Message(role="assistant", content=text)


def _text(messages: list[Message] | None, column: str) -> str:
    if messages is None or len(messages) != 1 or messages[0].role != "assistant":
        raise ImportExportError(f"`{column}` must be one assistant message")
    return messages[0].content


def _split_messages(messages: list[dict[str, Any]]) -> tuple[list[Message], str | None]:
    """Messages as TRL takes them, and all of them as JSON if that is not everything."""
    simple = [Message(role=_as_text(m.get("role")), content=_as_text(m.get("content"))) for m in messages]
    if [asdict(message) for message in simple] == messages:
        return simple, None
    return simple, msgspec.json.encode(messages).decode()


def _join_messages(messages: list[Message], as_json: str | None) -> list[dict[str, Any]]:
    if as_json is not None:
        whole: list[dict[str, Any]] = _decode(as_json, list[dict[str, Any]], "prompt_json")
        if _split_messages(whole)[0] != messages:
            raise ImportExportError("`prompt` and `prompt_json` differ; without `prompt_json`, `prompt` counts")
        return whole
    return [asdict(message) for message in messages]


def _as_text(content: Any) -> str:
    """What is said in a content: itself, or the texts of its parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _encode(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _decode(text: str | None, kind: Any, column: str) -> Any:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        raise ImportExportError(f"`{column}` is not JSON of its kind: {error}") from None
