"""Asks an engine how likely each next token is, at places of a text: bodies of requests, and their answers. Pure.

One token after every prefix, or `prompt_logprobs` of the whole text, which says the same with one request and without the prefix
cache, but under LoRA on CPU kills vLLM 0.32 when other requests share the batch. Raises SwapError for what is no such answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import SwapError

TOP_LOGPROBS = 20  # vLLM's own limit


class _Logprobs(msgspec.Struct):
    top_logprobs: list[dict[str, float]]


class _Choice(msgspec.Struct):
    index: int
    logprobs: _Logprobs


class _Answer(msgspec.Struct):
    choices: list[_Choice]


class _PromptLogprob(msgspec.Struct):
    logprob: float


class _PromptChoice(msgspec.Struct):
    prompt_logprobs: list[dict[int, _PromptLogprob] | None]


class _PromptAnswer(msgspec.Struct):
    choices: list[_PromptChoice]


def build_next_tokens(checkpoint: str, prefixes: Sequence[list[int]]) -> dict[str, Any]:
    """The body, for /v1/completions, that asks for one token after every prefix. Temperature 0 changes no log-probability."""
    return {
        "model": checkpoint,
        "prompt": prefixes,
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": TOP_LOGPROBS,
        "return_tokens_as_token_ids": True,
    }


def read_next_tokens(body: bytes, num: int) -> list[dict[int, float]]:
    """After each of `num` prefixes, the likeliest tokens' log-probabilities by id."""
    try:
        choices = sorted(msgspec.json.decode(body, type=_Answer).choices, key=lambda choice: choice.index)
        rows = [
            {int(token.removeprefix("token_id:")): value for token, value in choice.logprobs.top_logprobs[0].items()}
            for choice in choices
        ]
    except (msgspec.DecodeError, IndexError, ValueError) as error:
        raise SwapError(f"the engine's answer has no log-probabilities ({error})") from error
    return _check(rows, num)


def build_whole(checkpoint: str, token_ids: list[int]) -> dict[str, Any]:
    """The body, for /v1/completions, that asks for `prompt_logprobs` of a text."""
    return {
        "model": checkpoint,
        "prompt": token_ids,
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": TOP_LOGPROBS,
    }


def read_whole(body: bytes, num: int) -> list[dict[int, float]]:
    """In place of each of a text's last `num` tokens, the likeliest ones' log-probabilities by id."""
    try:
        rows = msgspec.json.decode(body, type=_PromptAnswer).choices[0].prompt_logprobs[-num:]
        found = [{token: one.logprob for token, one in (row or {}).items()} for row in rows]
    except (msgspec.DecodeError, IndexError, ValueError) as error:
        raise SwapError(f"the engine's answer has no log-probabilities of the prompt ({error})") from error
    return _check(found, num)


def _check(rows: list[dict[int, float]], num: int) -> list[dict[int, float]]:
    if len(rows) != num or not all(rows):
        raise SwapError(f"the engine's answer has {sum(map(bool, rows))} distributions, {num} were expected")
    return rows
