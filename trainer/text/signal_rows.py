"""What a signal says to learning: an answer that was rated, one that was edited, a demonstration.

Pure. A signal whose prompt or answer is not known says nothing here. A rating is on its person's own scale of generosity:
weighing that is the reward model's. An edit says twice: what would have been ideal, and that it is better than the answer.
An answer whose end is not known (of old signals, and of apps' own words) counts as whole, as imported ones do.
"""

from __future__ import annotations

import math

from feedback.events import Demonstration as DemonstrationEvent
from feedback.events import Outcome, Signal
from feedback.tool_calls import strip_tool_calls
from trainer.text.pairs import EDIT, Answer, Demonstration, Pair, Prompt, Rated

CUT_END = 20  # characters: an edit that ends in as many of a cut answer's last ones was not completed


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
            prompt=_make_prompt(signal, prompt_key),
            answer=_make_answer(signal),
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
    if not signal.messages or signal.answer is None or not signal.edited_text:
        return False
    return signal.edited_text not in (signal.answer, _make_answer(signal).text)


def make_edit(signal: Signal, *, event_id: str, prompt_key: str, split: str, row_id: int = 0) -> Demonstration:
    """The edited text as the ideal answer. Raises ValueError unless it is an edit."""
    _, edited = _make_versions(signal, event_id)
    return Demonstration(
        event_id=event_id,
        prompt=_make_prompt(signal, prompt_key),
        answer=edited,
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
    answer, edited = _make_versions(signal, event_id)
    is_first = sum(event_id.encode(errors="surrogatepass")) % 2 == 0
    return Pair(
        event_id=event_id,
        prompt=_make_prompt(signal, prompt_key),
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


def _make_prompt(signal: Signal, prompt_key: str) -> Prompt:
    assert signal.messages
    ids = signal.prompt_token_ids
    return Prompt(
        messages=signal.messages,
        key=prompt_key,
        ids=None if ids is None else tuple(ids),
        tools=signal.tools,
        template_kwargs=signal.chat_template_kwargs,
        tags=signal.tags,
    )


def _make_answer(signal: Signal) -> Answer:
    assert signal.answer is not None
    return Answer(
        text=strip_tool_calls(signal.answer, signal.tool_calls),
        ids=None if signal.token_ids is None else tuple(signal.token_ids),
        finish_reason="stop" if signal.finish_reason is None else signal.finish_reason,
        reasoning=signal.reasoning,
        tool_calls=signal.tool_calls,
        checkpoint=signal.checkpoint,
    )


def _make_versions(signal: Signal, event_id: str) -> tuple[Answer, Answer]:
    """The answer, and what it was edited to: whole, unless it breaks off where the answer does. Raises ValueError."""
    if not is_edit(signal):
        raise ValueError(f"{event_id} is no edit of an answer that is known")
    assert signal.edited_text is not None
    answer = _make_answer(signal)
    end = answer.text.rstrip()[-CUT_END:]
    is_cut = not answer.is_finished and end != "" and signal.edited_text.rstrip().endswith(end)
    return answer, Answer(text=signal.edited_text, finish_reason=answer.finish_reason if is_cut else "stop")


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
