"""What Prometheus reads of the serving path. Label children are looked up once and kept.

Names and labels are in base units, never a user or a checkpoint. Other parts register their own metrics on
`registry`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

ARMS = ("stable", "canary")
OUTCOMES = ("win", "loss", "tie", "both_bad")
POSITIONS = ("first", "second", "none")
READ_EVERY_S = 0.02
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PER_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class ArmMetrics:
    """The label children of one arm."""

    first_token: Histogram
    per_token: Histogram
    output_tokens: Histogram
    refusals: Counter
    refusal_reads: Counter
    refusals_read: Counter


class Metrics(Collector):
    """The registry and the serving path's metrics."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # By arm and code: cheaper than a Counter. Arms begin at 0, so that their first answer shows as an increase.
        self._num_answers: defaultdict[tuple[str, int], int] = defaultdict(int, {(arm, 200): 0 for arm in ARMS})
        registry.register(self)
        ProcessCollector(registry=registry)
        first = Histogram(
            "prefloop_time_to_first_token_seconds", "Streamed answers: wait for the first byte.", ["arm"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        per_token = Histogram(
            "prefloop_time_per_output_token_seconds", "Time per token after the first.", ["arm"],
            buckets=_PER_TOKEN, registry=registry,
        )  # fmt: skip
        tokens = Histogram(
            "prefloop_output_tokens", "Tokens of an answer.", ["arm"], buckets=_TOKENS, registry=registry
        )
        refusals = Counter(
            "prefloop_refusals", "Answers that refuse, as their engine says.", ["arm"], registry=registry
        )
        reads = Counter(
            "prefloop_refusal_reads", "Answers of which the first words were read as the gate's sensor does, fifty a second at most.",
            ["arm"], registry=registry,
        )  # fmt: skip
        refusals_read = Counter(
            "prefloop_refusals_read", "Of these, answers that refuse: by their engine's field, or by their words.", ["arm"],
            registry=registry,
        )  # fmt: skip
        self._may_read_at = 0.0
        self.arms = {
            arm: ArmMetrics(
                first.labels(arm), per_token.labels(arm), tokens.labels(arm), refusals.labels(arm), reads.labels(arm),
                refusals_read.labels(arm),
            )
            for arm in ARMS
        }  # fmt: skip
        self.retries = Counter("prefloop_engine_retries", "Calls to an engine that were repeated.", registry=registry)
        self.lost_twice = Counter(
            "prefloop_requests_stopped", "Requests stopped because two engines were lost over them.", registry=registry
        )
        self.comparisons = Counter("prefloop_comparisons", "Comparisons shown.", ["asked"], registry=registry)
        self.asks = Counter(
            "prefloop_asks", "Comparisons shown that are no duels, by how their answers were picked.", ["share"],
            registry=registry,
        )  # fmt: skip
        self.scorer_failures = Counter(
            "prefloop_scorer_failures", "Comparisons that are random because nothing was picked.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.scorer_seconds = Histogram(
            "prefloop_scorer_pick_seconds", "Time the scorer took to pick.", buckets=_SECONDS, registry=registry
        )
        self._not_paired = Counter(
            "prefloop_not_paired", "Requests due for two answers that got one.", ["reason"], registry=registry
        )
        self.choices = Counter("prefloop_choices", "Choices acknowledged.", ["preferred"], registry=registry)
        duels = Counter(
            "prefloop_duels",
            "Decided duels from the canary's side, by where its answer was shown; none: a candidate failed.",
            ["outcome", "position"], registry=registry,
        )  # fmt: skip
        self._duels = {(outcome, at): duels.labels(outcome, at) for outcome in OUTCOMES for at in POSITIONS}
        self._in_flight = Gauge("prefloop_requests_in_flight", "Requests being answered.", registry=registry)

    def watch_in_flight(self, count: Callable[[], float]) -> None:
        """Ask `count` whenever Prometheus reads."""
        self._in_flight.set_function(count)

    def count_request(self, arm: str, code: int) -> None:
        """One answer of an arm ("none" if it was refused before an arm was chosen)."""
        self._num_answers[arm, code] += 1

    def may_read(self, now: float) -> bool:
        """Whether an answer's words may be read now, on the monotonic clock: that costs as much as passing it through."""
        if now < self._may_read_at:
            return False
        self._may_read_at = now + READ_EVERY_S
        return True

    def count_refusal_read(self, arm: str, *, is_refused: bool) -> None:
        """An answer whose words were read."""
        self.arms[arm].refusal_reads.inc()
        if is_refused:
            self.arms[arm].refusals_read.inc()

    def collect(self) -> Iterator[Metric]:
        """What is counted in plain integers. For the registry."""
        answers = CounterMetricFamily("prefloop_requests", "Answers by arm and status.", labels=["arm", "code"])
        for (arm, code), num in self._num_answers.copy().items():
            answers.add_metric([arm, str(code)], num)
        yield answers

    def count_duel(self, outcome: str, position: str) -> None:
        """One of OUTCOMES, and of POSITIONS."""
        self._duels[outcome, position].inc()

    def count_not_paired(self, reason: str) -> None:
        """Two answers were due, one was given."""
        self._not_paired.labels(reason).inc()

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
