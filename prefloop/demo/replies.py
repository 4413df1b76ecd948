"""Asks as an app would, with the official client and two headers, and reads one or two answers, streamed or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

from prefloop.demo.worlds.world import Manners


@dataclass(frozen=True)
class Reply:
    """One or two answers, by display order, and the comparison they belong to. cut: those that hit the token limit."""

    texts: dict[int, str]
    comparison: Mapping[str, Any] | None
    cut: frozenset[int] = field(default_factory=frozenset)


async def ask(client: AsyncOpenAI, model: str, question: str, user: str, stream: bool, manners: Manners) -> Reply:
    """Ask as an app would: official client, two headers. Raises openai.OpenAIError after the client's retries."""
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": manners.temperature,
        "max_tokens": manners.max_tokens,
        "extra_headers": {"X-Prefloop-User": user, "X-Prefloop-Compare": "auto"},
    }
    if not stream:
        completion = await client.chat.completions.create(**request)
        texts = {choice.index: choice.message.content or "" for choice in completion.choices}
        cut = frozenset(choice.index for choice in completion.choices if choice.finish_reason == "length")
        return Reply(texts, (completion.model_extra or {}).get("comparison"), cut)
    pieces: dict[int, str] = {}
    reasons: dict[int, str] = {}
    comparison = None
    async with await client.chat.completions.create(**request, stream=True) as chunks:
        async for chunk in chunks:
            for choice in chunk.choices:
                pieces[choice.index] = pieces.get(choice.index, "") + (choice.delta.content or "")
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
            comparison = (chunk.model_extra or {}).get("comparison") or comparison
    return Reply(pieces, comparison, frozenset(index for index, reason in reasons.items() if reason == "length"))
