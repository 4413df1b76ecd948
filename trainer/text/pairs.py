"""The rows that learning sees: pairs of answers, demonstrations, and answers that were rated alone.

Pure: made of events' bodies, without I/O. Says nothing of token ids: text/transcript turns rows into those. Weights are
1 here: how reliable a person is, and how recent a row, is weighed in math/weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from feedback.events import CLEVER, Candidate, Choice
from feedback.tool_calls import append_tool_calls, strip_tool_calls

Split = Literal["train", "heldout", "auditor"]
Use = Literal["trained", "waiting", "heldout", "auditor", "unused", "skip", "quarantined"]
DECISIVE = ("first", "second")
EDIT = "edit"  # what `asked` of a pair says that an edit made


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What was asked. ids: what the engine read, None where that is not known and the chat template must say.

    key is the same for the same messages; tags: domain, language, task, as the app says.
    """

    messages: list[dict[str, Any]]
    key: str = ""
    ids: tuple[int, ...] | None = None
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRow:
    """A prompt that a round samples answers to. event_id: of the choice that it was asked in."""

    event_id: str
    prompt: Prompt


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer. ids: as it was sampled, turn end included if it was sampled, or None. checkpoint: "" if unknown.

    text: what was said beside tool_calls, which the chat template writes in its own way.
    """

    text: str
    ids: tuple[int, ...] | None = None
    finish_reason: str = "stop"
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    checkpoint: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None

    @property
    def shown(self) -> str:
        """All that was said, tool calls as JSON: what style and traits are read of, as a sampled answer's text has its calls."""
        return append_tool_calls(self.text, self.tool_calls)

    @property
    def is_finished(self) -> bool:
        """Whether the policy ended it: a turn end belongs to it."""
        return self.finish_reason in ("stop", "tool_calls")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One comparison with its verdict. `first` and `second` are the answers in the order they were shown.

    preferred is "first", "second", "tie" or "both_bad"; row_id is the row's in the inbox, 0 for rows of no inbox. share: how the
    answers were picked (feedback.events.Share).
    """

    event_id: str
    prompt: Prompt
    first: Answer
    second: Answer
    preferred: str
    split: str = "train"
    policy: str = "default"
    app: str = ""
    user: str = ""
    asked: str = "explore"
    share: str = ""
    strength: float | None = None
    weight: float = 1.0
    chosen_at: float = 0.0
    row_id: int = 0

    @property
    def is_decisive(self) -> bool:
        """Whether one of the answers was preferred."""
        return self.preferred in DECISIVE

    @property
    def is_edit(self) -> bool:
        """Whether it is no choice: who preferred one of the answers wrote it."""
        return self.asked == EDIT

    @property
    def may_judge(self) -> bool:
        """Whether what is foreseen of it says anything of the model: not where a model picked the answers."""
        return self.share not in CLEVER


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt with an ideal answer: an edit, or an expert's. source: "edit", "file" or "api"."""

    event_id: str
    prompt: Prompt
    answer: Answer
    source: str
    split: str = "train"
    policy: str = "default"
    app: str = ""
    user: str = ""
    weight: float = 1.0
    row_id: int = 0


@dataclass(frozen=True, kw_only=True)
class Rated:
    """One answer that was judged alone. value: 0 (worst) to 1 (best). kind: "thumb", "rating" or "outcome"."""

    event_id: str
    prompt: Prompt
    answer: Answer
    kind: str
    value: float
    split: str = "train"
    policy: str = "default"
    app: str = ""
    user: str = ""
    weight: float = 1.0
    created_at: float = 0.0
    row_id: int = 0


def make_prompt(choice: Choice, key: str) -> Prompt:
    """What was asked in a choice's comparison."""
    comparison = choice.comparison
    ids = comparison.prompt_token_ids
    return Prompt(
        messages=comparison.messages,
        key=key,
        ids=None if ids is None else tuple(ids),
        tools=comparison.tools,
        template_kwargs=comparison.chat_template_kwargs,
        tags=comparison.tags,
    )


def make_answer(candidate: Candidate) -> Answer:
    """An answer as it was recorded."""
    return Answer(
        text=strip_tool_calls(candidate.text, candidate.tool_calls),
        ids=None if candidate.token_ids is None else tuple(candidate.token_ids),
        finish_reason=candidate.finish_reason,
        reasoning=candidate.reasoning,
        tool_calls=candidate.tool_calls,
        checkpoint=candidate.checkpoint,
        temperature=candidate.temperature,
        max_tokens=candidate.max_tokens,
        top_p=candidate.top_p,
    )


def make_pair(choice: Choice, *, event_id: str, prompt_key: str, split: str, row_id: int = 0) -> Pair:
    """The pair of a stored choice. Raises ValueError for a skip, which says nothing of the answers."""
    if choice.preferred == "skip":
        raise ValueError(f"{event_id} is a skip")
    comparison = choice.comparison
    return Pair(
        event_id=event_id,
        prompt=make_prompt(choice, prompt_key),
        first=make_answer(comparison.first),
        second=make_answer(comparison.second),
        preferred=choice.preferred,
        split=split,
        policy=comparison.policy,
        app=comparison.app,
        user=comparison.user,
        asked=comparison.asked,
        share=comparison.share,
        strength=choice.strength,
        chosen_at=choice.chosen_at,
        row_id=row_id,
    )


def explain_use(preferred: str, split: str, used_as_new: int, is_quarantined: bool = False) -> Use:
    """What became of a stored choice: learnt from, waiting to be, or kept to judge by.

    used_as_new: how often an update of the reward model took it as new.
    """
    if is_quarantined:
        return "quarantined"
    if preferred == "skip":
        return "skip"
    if split in ("auditor", "unused"):
        return "auditor" if split == "auditor" else "unused"
    if split != "train":
        return "heldout"
    return "trained" if used_as_new else "waiting"
