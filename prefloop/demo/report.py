"""The demo's report: one JSON object with the keys the project promises, written atomically.

Computed from what the gateway, the trainer, the people and the final examination say over HTTP and files; numbers that
nobody gave are null, never guessed. Also samples the memory of all processes together.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from feedback.durable import write_durably

BYTES_PER_MB = 1_000_000
PROMOTED_PHASES = ("Baking", "Healthy")


@dataclass(frozen=True)
class Report:
    """One demo run; the field names are the report's keys."""

    seed: int
    algorithm: str
    choices: int
    comparisons: int
    requests: int
    failed_requests: int
    rounds: int
    rounds_stopped_by_gate: int
    rollouts: int
    inconclusive: int
    promotions: int
    aborts: int
    win_rate_before: dict[str, Any] | None
    win_rate_after: dict[str, Any] | None
    wrong_rate_before: float | None
    wrong_rate_after: float | None
    degenerate_before: dict[str, float] | None
    degenerate_after: dict[str, float] | None
    win_rate_by_family: dict[str, Any] | None
    reward_accuracy: float | None
    reward_accuracy_prequential: float | None
    seconds_total: float
    seconds_to_first_answer: float | None
    seconds_nth_choice_to_canary: float | None
    swap_seconds: float | None
    seconds_by_phase: dict[str, float] | None
    rss_peak_mb: float


@dataclass(frozen=True)
class RolloutCounts:
    """Rollouts by what came of them."""

    rollouts: int
    inconclusive: int
    promotions: int
    aborts: int


def write_json(path: Path, data: Any) -> None:
    """Write `data` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(data, indent=2) + "\n").encode())


def write_report(path: Path, report: Report) -> None:
    """Write the report as one JSON object."""
    write_json(path, asdict(report))


def count_rollouts(rollouts: Sequence[Mapping[str, Any]]) -> RolloutCounts:
    """Count rollouts by verdict. An A/A rollout counts like any other; one that goes on has no verdict yet.

    Inconclusive is Degraded with that reason; every other Degraded or Aborting one is an abort.
    """
    inconclusive = promotions = aborts = 0
    for rollout in rollouts:
        phase, reason = rollout["phase"], rollout.get("reason") or ""
        if phase in PROMOTED_PHASES:
            promotions += 1
        elif phase in ("Aborting", "Degraded", "Inconclusive"):
            is_inconclusive = phase == "Inconclusive" or reason.startswith("Inconclusive")
            inconclusive += is_inconclusive
            aborts += not is_inconclusive
    return RolloutCounts(len(rollouts), inconclusive, promotions, aborts)


def find_first_promoted(rollouts: Sequence[Mapping[str, Any]]) -> str | None:
    """The checkpoint that the oldest promoted rollout put in the stable one's place; None if there is none yet."""
    promoted = [rollout for rollout in rollouts if rollout["phase"] in PROMOTED_PHASES]
    return str(min(promoted, key=lambda rollout: rollout["created_at"])["checkpoint"]) if promoted else None


def measure_choice_to_canary_s(
    rounds: Sequence[Mapping[str, Any]], canary_first_answer_at: Mapping[str, float]
) -> float | None:
    """Return the seconds from the choice that triggered a round to the first answer of that round's canary.

    Takes the first round whose checkpoint answered as a canary: a round that the offline gate stopped has no canary.
    """
    for training in sorted(rounds, key=lambda row: row["number"]):
        answered_at = canary_first_answer_at.get(training.get("checkpoint") or "")
        triggered_at = training.get("trigger_choice_at")
        if answered_at is not None and triggered_at is not None:
            return float(answered_at - triggered_at)
    return None


def sum_phases(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return the seconds that all rounds spent in each phase; None where no round says so."""
    said = [row.get("phases") or (row.get("details") or {}).get("phases") for row in rounds]
    timed = [phases for phases in said if phases]
    totals: dict[str, float] = {}
    for phases in timed:
        for phase, seconds in phases.items():
            totals[phase] = round(totals.get(phase, 0.0) + seconds, 3)
    return totals if timed else None


def build_report(
    *,
    seed: int,
    algorithm: str,
    started_at: float,
    now: float,
    people: Mapping[str, Any],
    gateway: Mapping[str, Any],
    trainer: Mapping[str, Any],
    rollouts: Sequence[Mapping[str, Any]],
    final: Mapping[str, Any] | None,
    rss_peak_mb: float,
) -> Report:
    """Put the report together.

    started_at, now: epoch seconds; people: the people's stats file; gateway, trainer: their status bodies; rollouts:
    RolloutViews; final: FinalResult as a dict, None if there was no final examination.
    """
    rounds = trainer.get("rounds") or []
    counts = count_rollouts(rollouts)
    first_answer_at = people.get("first_answer_at")
    choice_to_canary_s = measure_choice_to_canary_s(rounds, gateway.get("canary_first_answer_at") or {})
    examined, reward = final or {}, trainer.get("reward") or {}
    return Report(
        seed=seed,
        algorithm=algorithm,
        choices=people.get("acks", 0),
        comparisons=people.get("comparisons", 0),
        requests=people.get("requests", 0),
        failed_requests=people.get("failed_requests", 0),
        rounds=len(rounds),
        rounds_stopped_by_gate=sum(row.get("outcome") == "stopped" for row in rounds),
        rollouts=counts.rollouts,
        inconclusive=counts.inconclusive,
        promotions=counts.promotions,
        aborts=counts.aborts,
        win_rate_before=examined.get("win_rate_before"),
        win_rate_after=examined.get("win_rate_after"),
        wrong_rate_before=examined.get("wrong_rate_before"),
        wrong_rate_after=examined.get("wrong_rate_after"),
        degenerate_before=examined.get("degenerate_before"),
        degenerate_after=examined.get("degenerate_after"),
        win_rate_by_family=examined.get("by_family"),
        reward_accuracy=reward.get("accuracy_heldout"),
        reward_accuracy_prequential=reward.get("prequential_accuracy"),
        seconds_total=round(now - started_at, 1),
        seconds_to_first_answer=None if first_answer_at is None else round(first_answer_at - started_at, 1),
        seconds_nth_choice_to_canary=None if choice_to_canary_s is None else round(choice_to_canary_s, 1),
        swap_seconds=(gateway.get("swap") or {}).get("last_swap_s"),
        seconds_by_phase=sum_phases(rounds),
        rss_peak_mb=round(rss_peak_mb, 1),
    )


def sample_tree_rss_mb(root_pid: int) -> float:
    """Return the resident megabytes of a process and all its descendants; pages they share count for each of them."""
    try:
        root = psutil.Process(root_pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it ended between the listing and the look
            continue
    return total / BYTES_PER_MB


class RssSampler:
    """Keeps the peak memory of a process tree, sampled by a thread of its own. Misses peaks between two samples."""

    def __init__(self, root_pid: int | None = None, period_s: float = 1.0) -> None:
        self.root_pid = os.getpid() if root_pid is None else root_pid
        self.period_s = period_s
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rss-sampler", daemon=True)

    def sample(self) -> float:
        """Look once; the peak so far, in megabytes."""
        self.peak_mb = max(self.peak_mb, sample_tree_rss_mb(self.root_pid))
        return self.peak_mb

    def start(self) -> RssSampler:
        """Sample from now on."""
        self._thread.start()
        return self

    def stop(self) -> float:
        """Stop sampling and return the peak in megabytes."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.sample()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self.period_s)


def read_start_time(environ: Mapping[str, str]) -> float:
    """Return when `make` began (PREFLOOP_STARTED_AT, epoch seconds), else now."""
    return float(environ.get("PREFLOOP_STARTED_AT") or time.time())
