"""How long people wait for the first token, as the gateway counts it, and the pace of sampling that follows.

Reads /metrics of the gateway, of the engines where that does not answer (there the trainer's own samples are among them, so
that the pace is lower than it need be). The decision is pacing.py's.
"""

from __future__ import annotations

import logging
import re
import threading
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from itertools import pairwise

from trainer.learn.sampling.pacing import Limits, Pace, Waits, add_idle, choose_pace, is_enough
from trainer.sections.judging import SamplingSection

log = logging.getLogger("trainer.learn.engine_sampler")

READ_TIMEOUT_S = 2.0
GATEWAY = ("prefloop_time_to_first_token_seconds", "prefloop_requests_total", "prefloop_requests_in_flight")
ENGINE = ("vllm:time_to_first_token_seconds", "vllm:request_success_total", "vllm:num_requests_running")
_SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)", re.MULTILINE)
_LE = re.compile(r'le="([^"]+)"')


def parse_waits(text: str, names: tuple[str, str, str] = GATEWAY) -> Waits:
    """The counters of a page in Prometheus' text format, summed over labels. names: the histogram, answers, those under way.

    Raises ValueError where a value is no number.
    """
    histogram, answers, under_way = names
    buckets: dict[float, float] = {}
    numbers = dict.fromkeys((answers, under_way), 0.0)
    for sample in _SAMPLE.finditer(text):
        name, value = sample["name"], sample["value"]
        if name == f"{histogram}_bucket" and (edge := _LE.search(sample["labels"] or "")):
            bound = float(edge[1])
            buckets[bound] = buckets.get(bound, 0.0) + float(value)
        elif name in numbers:
            numbers[name] += float(value)
    edges = tuple(sorted(buckets))
    upto = [0.0, *(buckets[edge] for edge in edges)]
    counts = tuple(more - fewer for fewer, more in pairwise(upto))
    return Waits(edges, counts, numbers[answers], numbers[under_way])


def read_waits(gateway_url: str, engine_urls: Sequence[str]) -> Waits | None:
    """The counters as they stand now; None where neither gateway nor engines say."""
    for urls, names in (([gateway_url], GATEWAY), (engine_urls, ENGINE)):
        pages = [page for url in urls if (page := _read_page(url)) is not None]
        if pages and len(pages) == len(urls):
            try:
                waits = parse_waits("\n".join(pages), names)
            except ValueError as error:
                log.warning("/metrics of %s cannot be read: %s", ", ".join(urls), error)
                continue
            if waits.edges:
                return waits
    return None


def _read_page(url: str) -> str | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url.rstrip("/").removesuffix("/v1") + "/metrics", timeout=READ_TIMEOUT_S) as response:
            return str(response.read().decode("utf-8", "replace"))
    except (OSError, HTTPException, ValueError):  # ValueError: no URL
        return None


class Pacer:
    """Remembers what people wait without samples, and keeps the cap. on_pace is told every change."""

    def __init__(
        self, read: Callable[[], Waits | None], limits: Limits, on_pace: Callable[[Pace], None] = lambda pace: None
    ) -> None:
        self._read, self._limits, self._on_pace = read, limits, on_pace
        self.pace = Pace(limits.blind, "sampling has not begun")
        self.paces: list[Pace] = []  # at every look since `forget`
        self._idle = Waits()
        self._since: Waits | None = Waits()  # the counters when the window, or the idle time, began
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Samples are asked for from now on: what came since the last were in is idle time."""
        with self._lock:
            now = self._read()
            if now is not None and self._since is not None:
                self._idle = add_idle(self._idle, now.minus(self._since) if self._since.edges else now)
            self._since = now

    def choose_limit(self) -> int:
        """Look again, and say how many may be under way."""
        with self._lock:
            now = self._read()
            if now is None or self._since is not None:
                window = None if now is None or self._since is None else now.minus(self._since)
                if not is_enough(window):
                    now = self._since  # the window goes on
                self._set(choose_pace(self.pace, window, self._idle, self._limits))
            self._since = now
            self.paces.append(self.pace)
            return self.pace.cap

    def end(self) -> None:
        """The samples are in: idle time begins."""
        with self._lock:
            self._since = self._read()

    def forget(self) -> None:
        """Begin the figures anew."""
        self.paces.clear()

    def figures(self) -> dict[str, float]:
        """Means over the looks since `forget`, and the lowest cap; {} without any. sampling_slowdown: where it was known."""
        if not self.paces:
            return {}
        caps, slowdowns = [pace.cap for pace in self.paces], [p.slowdown for p in self.paces if p.slowdown is not None]
        figures = {
            "samples_cap": sum(caps) / len(caps),
            "samples_cap_lowest": float(min(caps)),
            "samples_blind": sum(pace.is_blind for pace in self.paces) / len(caps),
        }
        return figures | ({"sampling_slowdown": sum(slowdowns) / len(slowdowns)} if slowdowns else {})

    def _set(self, pace: Pace) -> None:
        if pace.is_blind and (pace.reason != self.pace.reason or not self.pace.is_blind):
            log.warning("at most %d samples at a time: %s", self._limits.blind, pace.reason)
        if pace != self.pace:
            self._on_pace(pace)
        self.pace = pace


def make_pacer(
    section: SamplingSection, gateway_url: str, on_pace: Callable[[Pace], None] = lambda pace: None
) -> Pacer:
    """The pacer that the settings state."""
    highest = section.max_in_flight
    limits = Limits(
        lowest=min(section.min_in_flight, highest),
        highest=highest,
        blind=min(section.blind_in_flight, highest),
        slowdown=section.max_slowdown,
    )
    return Pacer(lambda: read_waits(gateway_url, section.engines), limits, on_pace)
