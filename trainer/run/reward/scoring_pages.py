"""The scorer's HTTP pages: POST /score, and /livez, /metrics and /status.

Bad input is refused, a busy scorer refuses at once, and no row ends the process.
"""

from __future__ import annotations

import logging
import threading
import time
from urllib.parse import urlsplit

import msgspec
import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from feedback.outages import describe_error
from feedback.scoring import ScoreRequest
from trainer.run.reward.scoring import Scorer, ScoringFailed
from trainer.run.status.server import Answer, answer_json, refuse

log = logging.getLogger("trainer.run.reward.scoring")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_CODES = {"unusable": 422, "not_ready": 503, "busy": 503, "late": 503}


class ScoringMetrics:
    """What the scorer counts, its memory among it."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "prefloop_scorer_requests", "Requests by how they ended.", ["outcome"], registry=registry
        )
        self.seconds = Histogram("prefloop_scorer_seconds", "Time to score.", buckets=_SECONDS, registry=registry)
        self.version = Gauge("prefloop_scorer_reward_version", "Version that scores; 0: none yet.", registry=registry)
        self.failed_loads = Gauge(
            "prefloop_scorer_failed_loads", "Times that a version could not be loaded.", registry=registry
        )


class ScoringPages:
    """Answers requests. `waits_for` says what is missing until there is a scorer."""

    def __init__(self, waits_for: str) -> None:
        self.metrics = ScoringMetrics()
        self.waits_for = waits_for
        self.scorer: Scorer | None = None
        self._requests = msgspec.json.Decoder(ScoreRequest)
        self._num_scored = 0
        self._counting = threading.Lock()

    def get(self, target: str) -> Answer:
        """The answer to GET."""
        scorer = self.scorer
        if scorer is not None:
            self.metrics.version.set(scorer.version)
            self.metrics.failed_loads.set(scorer.num_failed_loads)
        match urlsplit(target).path:
            case "/livez":
                return 200, "text/plain", b"ok\n"
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest(self.metrics.registry)
            case "/status":
                return answer_json(200, self._describe(scorer))
        return refuse(404, "no such page")

    def _describe(self, scorer: Scorer | None) -> dict[str, object]:
        version = scorer.version if scorer else 0
        reason = self.waits_for if scorer is None else scorer.problem if version else "there is no reward model yet"
        return {
            "is_ready": version > 0,
            "reason": reason,
            "version": version,
            "num_scored": self._num_scored,
            "memory_mb": round(psutil.Process().memory_info().rss / 2**20),
        }

    def post(self, target: str, content_type: str, body: bytes, client: str, authorization: str = "") -> Answer:
        """The answer to POST."""
        if urlsplit(target).path != "/score":
            return refuse(404, "no such page")
        if content_type.partition(";")[0].strip() != "application/json":
            return self._refuse("refused", 415, "send application/json")
        try:
            request = self._requests.decode(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
            return self._refuse("refused", 400, str(error))
        if self.scorer is None:
            return self._refuse("not_ready", 503, self.waits_for)
        began = time.monotonic()
        try:
            answer = self.scorer.score(request)
        except ScoringFailed as error:
            return self._refuse(error.reason, _CODES[error.reason], str(error))
        except Exception as error:  # a template or tokenizer that raises what it likes
            log.warning("candidates could not be scored: %s", describe_error(error))
            return self._refuse("failed", 500, describe_error(error))
        self.metrics.seconds.observe(time.monotonic() - began)
        self.metrics.requests.labels("scored").inc()
        with self._counting:
            self._num_scored += 1
        return 200, "application/json", msgspec.json.encode(answer)

    def _refuse(self, outcome: str, code: int, message: str) -> Answer:
        self.metrics.requests.labels(outcome).inc()
        return answer_json(code, {"error": {"code": outcome, "message": message}})
