"""What Prometheus reads of keys: answers, tokens and spend by the key's name, for a hundred names and "other"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from gateway.access.key_usage import UsageBook

MOST_NAMES = 100
OTHER = "other"
_NANO = 1_000_000_000


class KeyCollector(Collector):
    """find_name: of a key's id, None of one that is not known. A name is kept: a revoked key's series goes on."""

    def __init__(self, usage: UsageBook, find_name: Callable[[str], str | None]) -> None:
        self._usage, self._find_name = usage, find_name
        self._names: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        """The metrics as of now."""
        requests = CounterMetricFamily("prefloop_key_requests", "Answered requests by key.", labels=["key"])
        tokens = CounterMetricFamily("prefloop_key_tokens", "Tokens by key.", labels=["key", "kind"])
        spend = CounterMetricFamily("prefloop_key_spend", "Spend by key, in the prices' currency.", labels=["key"])
        for name, counts in self._sum_by_name().items():
            requests.add_metric([name], counts[0])
            tokens.add_metric([name, "prompt"], counts[1])
            tokens.add_metric([name, "completion"], counts[2])
            spend.add_metric([name], counts[3] / _NANO)
        yield from (requests, tokens, spend)

    def _sum_by_name(self) -> dict[str, list[int]]:
        sums: dict[str, list[int]] = {}
        for key_id, counts in list(self._usage.totals.items()):
            name = self._name(key_id)
            sums[name] = [a + b for a, b in zip(sums.get(name, [0] * len(counts)), counts, strict=True)]
        return sums

    def _name(self, key_id: str) -> str:
        if key_id not in self._names:
            name = self._find_name(key_id) or key_id
            known = set(self._names.values())
            self._names[key_id] = name if name in known or len(known - {OTHER}) < MOST_NAMES else OTHER
        return self._names[key_id]
