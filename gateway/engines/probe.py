"""Asks whether an adapter really answers: log-probabilities of a known text, beside those the trainer measured.

One token after every prefix. vLLM's prompt_logprobs would say the same of one prompt, but under LoRA on CPU it kills the
engine when other requests share the batch. Pure: the swap sends the request.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import SwapError

if TYPE_CHECKING:
    from feedback.manifest import Manifest

_TOP_LOGPROBS = 20  # vLLM's own limit
_MOST_UNLISTED = -math.log(_TOP_LOGPROBS + 1)  # a token is not listed if twenty are likelier
_MIN_PROBED = 3  # tokens that must be among the likeliest


class _Logprobs(msgspec.Struct):
    top_logprobs: list[dict[str, float]]


class _Choice(msgspec.Struct):
    index: int
    logprobs: _Logprobs


class _Answer(msgspec.Struct):
    choices: list[_Choice]


def build_probe(checkpoint: str, token_ids: list[int]) -> dict[str, Any]:
    """The body of the probe, for /v1/completions."""
    return {
        "model": checkpoint,
        "prompt": [token_ids[:end] for end in range(1, len(token_ids))],
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": _TOP_LOGPROBS,
        "return_tokens_as_token_ids": True,
    }


def read_probe_logprobs(body: bytes, token_ids: list[int]) -> list[float | None]:
    """Log-probabilities of tokens 1..n after their prefixes; None where a token is not among the likeliest 20.

    Raises SwapError if the answer is not that of a probe.
    """
    try:
        answers = sorted(msgspec.json.decode(body, type=_Answer).choices, key=lambda choice: choice.index)
        return [
            choice.logprobs.top_logprobs[0].get(f"token_id:{token}")
            for choice, token in zip(answers, token_ids[1:], strict=True)
        ]
    except (msgspec.DecodeError, IndexError, ValueError) as error:
        raise SwapError(f"the probe's answer has no log-probabilities ({error})") from error


def judge_probe(measured: list[float | None], manifest: Manifest, tolerance: float) -> str | None:
    """Why the measured log-probabilities do not prove the adapter; None if they do. Distances in nats, worst token.

    Where the adapter differs from the base, the measurement must lie nearer to the adapter: one with wrong module names
    is loaded without complaint, and answers as the base. A token that was not listed says that it is unlikely: there all
    three are compared by how far they are above what an unlisted token can have.
    """
    expected, base = manifest.probe.logprobs, manifest.probe.base_logprobs
    if not expected or len(measured) != len(expected):
        return f"gave {len(measured)} log-probabilities, {len(expected)} were expected"
    num_known = sum(value is not None for value in measured)
    if num_known < min(_MIN_PROBED, len(expected)):
        return f"gave only {num_known} of {len(expected)} tokens among the likeliest"
    seen = [_MOST_UNLISTED if value is None else value for value in measured]
    own = _clip(expected, measured)
    off = _distance(seen, own)
    if len(base) == len(expected):
        without = _clip(base, measured)
        if _distance(own, without) > tolerance and _distance(seen, without) <= off:
            return f"answers as the base does (off by {off:.2g} nats)"
    return None if off <= tolerance else f"answers off by {off:.2g} nats (tolerance {tolerance:.2g})"


def _clip(values: list[float], measured: list[float | None]) -> list[float]:
    pairs = zip(values, measured, strict=True)
    return [max(value, _MOST_UNLISTED) if seen is None else value for value, seen in pairs]


def _distance(one: list[float], other: list[float]) -> float:
    worst = max(abs(a - b) for a, b in zip(one, other, strict=True))
    return worst if worst == worst else float("inf")
