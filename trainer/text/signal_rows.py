"""What a signal says to learning: an answer that was rated, one that was edited, a demonstration.

Pure. A signal whose prompt or answer is not known says nothing here. A rating is on its person's own scale of generosity:
weighing that is the reward model's. An edit says twice: what would have been ideal, and that it is better than the answer.
"""

from __future__ import annotations

import math

from feedback.events import Demonstration as DemonstrationEvent
from feedback.events import Outcome, Signal
from trainer.text.pairs import EDIT, Answer, Demonstration, Pair, Prompt, Rated


def make_rated(signal: Signal, *, event_id: str, prompt_key: str, split: str, row_id: int = 0) -> list[Rated]:
    """One row each for a thumb, a rating and an outcome; several of one signal have its event id in common."""
    if not signal.messages or signal.answer is None:
        return []
    values = (
        ("thumb", _read_thumb(signal)),
        ("rating", _read_rating(signal)),
        ("outcome", _read_outcome(signal.outcome)),
    )
    return [
        Rated(
            event_id=event_id,
            prompt=Prompt(messages=signal.messages, key=prompt_key),
            answer=Answer(text=signal.answer, checkpoint=signal.checkpoint),
            kind=kind,
            value=value,
            split=split,
            policy=signal.policy,
            app=signal.app,
            user=signal.user,
            created_at=signal.created_at,
            row_id=row_id,
        )
        for kind, value in values
        if value is not None
    ]


def is_edit(signal: Signal) -> bool:
    """Whether it changes an answer that is known, to a question that is."""
    return bool(signal.messages and signal.answer is not None and signal.edited_text) and (
        signal.edited_text != signal.answer
    )


def make_edit(signal: Signal, *, event_id: str, prompt_key: str, split: str, row_id: int = 0) -> Demonstration:
    """The edited text as the ideal answer. Raises ValueError unless it is an edit."""
    prompt = _make_prompt(signal, event_id, prompt_key)
    assert signal.edited_text is not None
    return Demonstration(
        event_id=event_id,
        prompt=prompt,
        answer=Answer(text=signal.edited_text),
        source="edit",
        split=split,
        policy=signal.policy,
        app=signal.app,
        user=signal.user,
        row_id=row_id,
    )


def make_edit_pair(
    signal: Signal, *, event_id: str, prompt_key: str, split: str, weight: float, row_id: int = 0
) -> Pair:
    """The edited text preferred over the answer; asked says "edit". Raises ValueError unless it is an edit.

    Which of the two stands first follows from the event id, so that no place on the page means anything.
    """
    prompt = _make_prompt(signal, event_id, prompt_key)
    assert signal.answer is not None and signal.edited_text is not None
    answer, edited = Answer(text=signal.answer, checkpoint=signal.checkpoint), Answer(text=signal.edited_text)
    is_first = sum(event_id.encode(errors="surrogatepass")) % 2 == 0
    return Pair(
        event_id=event_id,
        prompt=prompt,
        first=edited if is_first else answer,
        second=answer if is_first else edited,
        preferred="first" if is_first else "second",
        split=split,
        policy=signal.policy,
        app=signal.app,
        user=signal.user,
        asked=EDIT,
        weight=weight,
        chosen_at=signal.created_at,
        row_id=row_id,
    )


def make_demonstration(
    event: DemonstrationEvent, *, event_id: str, prompt_key: str, split: str, row_id: int = 0
) -> Demonstration:
    """The row of a demonstration that was sent or imported."""
    return Demonstration(
        event_id=event_id,
        prompt=Prompt(
            messages=event.messages,
            key=prompt_key,
            tools=event.tools,
            template_kwargs=event.chat_template_kwargs,
            tags=event.tags,
        ),
        answer=Answer(text=event.answer),
        source="file" if event.channel == "import" else "api",
        split=split,
        policy=event.policy,
        app=event.app,
        user=event.user,
        row_id=row_id,
    )


def _make_prompt(signal: Signal, event_id: str, prompt_key: str) -> Prompt:
    if not is_edit(signal):
        raise ValueError(f"{event_id} is no edit of an answer that is known")
    assert signal.messages is not None
    return Prompt(messages=signal.messages, key=prompt_key)


def _read_thumb(signal: Signal) -> float | None:
    return None if signal.thumb is None else float(signal.thumb == "up")


def _read_rating(signal: Signal) -> float | None:
    """1 is the worst of a scale, `scale` the best."""
    if signal.rating is None or signal.scale is None or signal.scale < 2 or not math.isfinite(signal.rating):
        return None
    return min(1.0, max(0.0, (signal.rating - 1) / (signal.scale - 1)))


def _read_outcome(outcome: Outcome | None) -> float | None:
    """A success counts before a score; a score outside of 0 to 1 is in units of the app's own."""
    if outcome is None:
        return None
    if outcome.success is not None:
        return float(outcome.success)
    return outcome.score if outcome.score is not None and 0 <= outcome.score <= 1 else None
