"""Latency and throughput of a window of time, and of a round against idle. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.round_beside_traffic.load import Answered

Window = tuple[float, float]  # begins, ends: seconds of the monotonic clock
MIN_REQUESTS = 100  # fewer say nothing of a 99th percentile


@dataclass(frozen=True)
class Serving:
    """What was served in a window: requests that began and ended in it."""

    num_requests: int
    p50_s: float
    p99_s: float
    tokens_per_s: float
    seconds: float


class TooFewRequests(ValueError):
    """A window says nothing."""


def describe_window(answered: Sequence[Answered], window: Window) -> Serving:
    """Sum up a window. Raises TooFewRequests for under a hundred requests."""
    begins, ends = window
    inside = [each for each in answered if begins <= each.began_at and each.ended_at <= ends]
    if len(inside) < MIN_REQUESTS:
        raise TooFewRequests(f"{len(inside)} requests in {ends - begins:.0f} s: at least {MIN_REQUESTS} are needed")
    latencies = sorted(each.ended_at - each.began_at for each in inside)
    tokens = sum(each.tokens for each in inside)
    return Serving(
        len(inside), quantile(latencies, 0.5), quantile(latencies, 0.99), tokens / (ends - begins), ends - begins
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare(first: Serving, second: Serving, during: Serving) -> dict[str, float]:
    """The bench's figures. first, second: two idle windows, whose mean is what a round is held against."""
    return {
        "p99_during_over_idle": round(during.p99_s / ((first.p99_s + second.p99_s) / 2), 3),
        "tokens_per_s_during_over_idle": round(
            during.tokens_per_s / ((first.tokens_per_s + second.tokens_per_s) / 2), 3
        ),
        "a_a_p99_ratio": round(second.p99_s / first.p99_s, 3),
    }


def find_sampling(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How fast the newest round sampled beside people, of the figures that it has; {} for one that sampled nothing."""
    names = ("samples_cap", "samples_cap_lowest", "samples_blind", "sampling_slowdown", "share_generating")
    metrics = max(rounds, key=lambda row: row["number"])["metrics"] if rounds else {}
    return {name: round(metrics[name], 3) for name in names if name in metrics}
