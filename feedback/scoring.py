"""What a gateway asks of the trainer's scorer, `POST /score`: which two of a few answers to show. Bodies are JSON.

Candidates read as in events.Candidate. Does not say who asks: the scorer serves one policy, and listens on loopback.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

MAX_CANDIDATES = 16


class ScoredCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, as an event would have it. token_ids: None where they are not known."""

    text: str
    token_ids: list[int] | None = None
    finish_reason: str = "stop"
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Answers to one prompt. seed: fixes the posterior draw; budget_ms: after so long nobody waits for the answer."""

    messages: list[dict[str, Any]]
    candidates: Annotated[list[ScoredCandidate], msgspec.Meta(min_length=2, max_length=MAX_CANDIDATES)]
    prompt_token_ids: list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    budget_ms: Annotated[float, msgspec.Meta(gt=0)] = 10_000.0


class ScoreAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The two to show for each share, by their places in the request. draws: scores, (candidates, K).

    version: of the reward model that scored.
    """

    version: int
    informative: tuple[int, int]
    telling: tuple[int, int]
    draws: list[list[float]]
