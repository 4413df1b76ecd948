"""Asks whether an adapter really answers: log-probabilities of a known text, beside those the trainer measured.

One token after every prefix. vLLM's prompt_logprobs would say the same of one prompt, but under LoRA on CPU it kills the
engine when other requests share the batch. Pure: the swap sends the request.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gateway.engines.next_tokens import TOP_LOGPROBS, build_next_tokens, read_next_tokens

if TYPE_CHECKING:
    from feedback.manifest import Manifest

_MOST_UNLISTED = -math.log(TOP_LOGPROBS + 1)  # a token is not listed if twenty are likelier
_MIN_PROBED = 3  # tokens that must be among the likeliest


def build_probe(checkpoint: str, token_ids: list[int]) -> dict[str, Any]:
    """The body of the probe, for /v1/completions."""
    return build_next_tokens(checkpoint, [token_ids[:end] for end in range(1, len(token_ids))])


def read_probe_logprobs(body: bytes, token_ids: list[int]) -> list[float | None]:
    """Log-probabilities of tokens 1..n after their prefixes; None where a token is not among the likeliest 20.

    Raises SwapError if the answer is not that of a probe.
    """
    rows = read_next_tokens(body, len(token_ids) - 1)
    return [row.get(token) for row, token in zip(rows, token_ids[1:], strict=True)]


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
