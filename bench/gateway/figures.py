"""From samples to figures: medians, ratios within a round, the table and the one JSON object. Pure.

A ratio is the median over rounds of the two peers' ratio within each round, so that a machine that slows down between
rounds moves both. A figure that was not measured is None. Does not judge: the issue's bounds are not written here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.gateway.loads import Load, Sample
from bench.gateway.peers import AGAIN, DIRECT, GATEWAY, LITELLM_PEER, RAW, ROUTER_PEER

Measure = Callable[[Sample], float]


@dataclass(frozen=True)
class Counts:
    """Completions that the gateway recorded and dropped in one load, from its own counters."""

    recorded: float
    dropped: float

    @property
    def ratio(self) -> float | None:
        """Recorded over all; None if nothing was counted."""
        total = self.recorded + self.dropped
        return self.recorded / total if total else None

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(self.recorded - before.recorded, self.dropped - before.dropped)


def read_metric(text: str, name: str) -> float:
    """The sum of a metric's values over its labels, from what Prometheus reads; 0 if it is not there."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name))
    return sum(float(value) for labelled, value in lines if labelled.partition("{")[0] == name)


class Samples:
    """All samples of a run, looked up by peer and load."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = {(sample.peer, sample.load, sample.round): sample for sample in samples}
        self.peers = list(dict.fromkeys(sample.peer for sample in self._samples.values()))
        self._rounds = sorted({number for _, _, number in self._samples})

    def median(self, peer: str, load: Load, measure: Measure) -> float | None:
        """The median over rounds; None if the peer was not given the load."""
        values = [measure(sample) for sample in (self._get(peer, load, number) for number in self._rounds) if sample]
        return median(values) if values else None

    def ratio(self, peer: str, other: str, load: Load, measure: Measure) -> float | None:
        """The median over rounds of peer / other."""
        return self._compare(peer, other, load, lambda one, two, _: measure(one) / measure(two))

    def added_ratio(self, peer: str, other: str, load: Load, measure: Measure) -> float | None:
        """The median over rounds of what peer adds to the mock alone / what other adds; without rounds of pure noise."""

        def divide(one: Sample, two: Sample, base: Sample) -> float | None:
            added = measure(two) - measure(base)
            return (measure(one) - measure(base)) / added if added > 0 else None

        return self._compare(peer, other, load, divide)

    def added(self, peer: str, load: Load, measure: Measure) -> float | None:
        """The median over rounds of what peer adds to the mock alone."""
        return self._compare(peer, DIRECT, load, lambda one, base, _: measure(one) - measure(base))

    def num_failed(self) -> dict[str, int]:
        """Requests that failed, by peer; without those that failed none."""
        failed: dict[str, int] = {}
        for sample in self._samples.values():
            failed[sample.peer] = failed.get(sample.peer, 0) + sample.failed
        return {peer: num for peer, num in failed.items() if num}

    def _get(self, peer: str, load: Load, number: int) -> Sample | None:
        return self._samples.get((peer, load, number))

    def _compare(
        self, peer: str, other: str, load: Load, compare: Callable[[Sample, Sample, Sample], float | None]
    ) -> float | None:
        values = []
        for number in self._rounds:
            one, two, base = (self._get(name, load, number) for name in (peer, other, DIRECT))
            if one and two and base:
                values.append(compare(one, two, base))
        known = [value for value in values if value is not None]
        return median(known) if known else None


def compute_figures(
    samples: Samples, recorded: Mapping[Load, Sequence[Counts]], rss_mb: float, pair_over_single: float | None
) -> dict[str, float | None]:
    """The figures by their names in the last line, rounded. recorded: one entry a round."""
    first_added_us = samples.added(GATEWAY, Load.FIRST, lambda s: s.first_p50_us)
    figures = {
        "ratio_rust_16": samples.ratio(GATEWAY, ROUTER_PEER, Load.SIXTEEN, lambda s: s.answers_s),
        "ratio_litellm_16": samples.ratio(GATEWAY, LITELLM_PEER, Load.SIXTEEN, lambda s: s.answers_s),
        "ratio_direct_16": samples.ratio(GATEWAY, DIRECT, Load.SIXTEEN, lambda s: s.answers_s),
        "p50_over_rust_1": samples.added_ratio(GATEWAY, ROUTER_PEER, Load.ONE, lambda s: s.whole_p50_us),
        "p99_over_rust_1": samples.added_ratio(GATEWAY, ROUTER_PEER, Load.ONE, lambda s: s.whole_p99_us),
        "cpu_over_rust": samples.ratio(GATEWAY, ROUTER_PEER, Load.SIXTEEN, lambda s: s.cpu_us),
        "ratio_stream_raw": samples.ratio(GATEWAY, RAW, Load.STREAMS, lambda s: s.events_s),
        "chunk_cpu_over_rust": samples.ratio(GATEWAY, ROUTER_PEER, Load.PACED, lambda s: s.cpu_us),
        "recorded_ratio": _median_ratio(recorded.get(Load.SIXTEEN, ())),
        "recorded_ratio_2000": _median_ratio(recorded.get(Load.RATE, ())),
        "a_a_ratio": samples.ratio(AGAIN, GATEWAY, Load.SIXTEEN, lambda s: s.answers_s),
        "first_token_added_p50_ms": None if first_added_us is None else first_added_us / 1000,
        "pair_over_single": pair_over_single,
        "rss_mb": rss_mb,
    }
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


COLUMNS: dict[str, tuple[Load, Measure, int]] = {  # heading: load, measure, decimals
    "req/s, 16": (Load.SIXTEEN, lambda s: s.answers_s, 0),
    "CPU us/req": (Load.SIXTEEN, lambda s: s.cpu_us, 1),
    "p50 us, 1": (Load.ONE, lambda s: s.whole_p50_us, 0),
    "p99 us, 1": (Load.ONE, lambda s: s.whole_p99_us, 0),
    "events/s": (Load.STREAMS, lambda s: s.events_s, 0),
    "CPU us/event, full": (Load.STREAMS, lambda s: s.cpu_us, 1),
    "paced": (Load.PACED, lambda s: s.cpu_us, 1),
    "first p50 us": (Load.FIRST, lambda s: s.first_p50_us, 0),
}


def render_table(samples: Samples, rss_mb: Mapping[str, float]) -> str:
    """The medians of every peer, one line each."""
    rows = [["", *COLUMNS, "RSS MB"]]
    for peer in samples.peers:
        values = [(samples.median(peer, load, measure), digits) for load, measure, digits in COLUMNS.values()]
        cells = ["-" if value is None else f"{value:,.{digits}f}" for value, digits in values]
        rows.append([peer, *cells, f"{rss_mb[peer]:,.0f}" if peer in rss_mb else "-"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *line[1:]]) for row, line in zip(rows, lines, strict=True))


def _median_ratio(counts: Sequence[Counts]) -> float | None:
    ratios = [count.ratio for count in counts if count.ratio is not None]
    return median(ratios) if ratios else None
