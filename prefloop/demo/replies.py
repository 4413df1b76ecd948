"""Asks as an app would, with the official client and two headers, and reads one or two answers, streamed or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

TEMPERATURE = 0.7
MAX_TOKENS = 48


@dataclass(frozen=True)
class Reply:
    """One or two answers, by display order, and the comparison they belong to."""

    texts: dict[int, str]
    comparison: Mapping[str, Any] | None


async def ask(client: AsyncOpenAI, model: str, question: str, user: str, stream: bool) -> Reply:
    """Ask as an app would: official client, two headers. Raises openai.OpenAIError after the client's retries."""
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        "extra_headers": {"X-Prefloop-User": user, "X-Prefloop-Compare": "auto"},
    }
    if not stream:
        completion = await client.chat.completions.create(**request)
        texts = {choice.index: choice.message.content or "" for choice in completion.choices}
        return Reply(texts, (completion.model_extra or {}).get("comparison"))
    pieces: dict[int, str] = {}
    comparison = None
    async with await client.chat.completions.create(**request, stream=True) as chunks:
        async for chunk in chunks:
            for choice in chunk.choices:
                pieces[choice.index] = pieces.get(choice.index, "") + (choice.delta.content or "")
            comparison = (chunk.model_extra or {}).get("comparison") or comparison
    return Reply(pieces, comparison)
