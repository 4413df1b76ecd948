"""What one decision costs at 100,000 duels, in CPU time of its thread: weigh voters and first requests, and decide."""

import time
from collections.abc import Callable

import numpy as np

from bench.gate.people import People, ask_people
from gateway.rollout.desired_state import convert_rules
from gateway.rollout.pure import machine
from gateway.rollout.pure.findings import Inputs, weigh
from gateway.rollout.pure.users import Duel, Voter
from gateway.sections.rollout import RolloutSection
from gateway.tables.rows import Observation, RolloutRow

NUM_DUELS = 100_000
_REPEATS = 7


def measure_decision(
    sum_up_all: Callable[[dict[str, list[Duel]], int], list[Voter]], rng: np.random.Generator
) -> tuple[float, float]:
    """Milliseconds of CPU: the median decision, and summing up the duels once."""
    section = RolloutSection()
    rules, duels, num = convert_rules(section), dict[str, list[Duel]](), 0
    while num < NUM_DUELS:
        more = ask_people(People(heavy=True, failing=0.01), 1000, rng, began_at=float(len(duels)), prefix=f"{num}-")
        duels |= more
        num += sum(map(len, more.values()))
    began = time.thread_time()
    voters = sum_up_all(duels, rules.cap)
    reading_s = time.thread_time() - began
    observed = [_observe(user, rng) for user in duels]
    row = _open_row(section)
    costs = []
    for _ in range(_REPEATS):
        began = time.thread_time()
        machine.decide(row, weigh(rules, Inputs(1e6, voters, observed)), 1e6, rules)
        costs.append(time.thread_time() - began)
    return 1000 * sorted(costs)[_REPEATS // 2], 1000 * reading_s


def _observe(user: str, rng: np.random.Generator) -> Observation:
    arm = "canary" if rng.random() < 0.5 else "stable"
    return Observation("r", user, arm, "single", 0.5, bool(rng.random() < 0.02), False, False, float(rng.random()), 0.0)


def _open_row(section: RolloutSection) -> RolloutRow:
    return RolloutRow(
        id="r", policy="p", checkpoint="c", stable="s", aa=False, phase=machine.PROGRESSING, analysis="Running",
        reason=machine.Reason.RUNNING.value, step=3, step_started_at=0.0, weight=0.5, duel_share=0.0, salt="00",
        generation=1, created_at=0.0, started_at=0.0, phase_started_at=0.0, finished_at=None, resume_phase="",
        waived="", decision_digest="", settings=section.model_dump_json(), pair="r", num_tries=1,
    )  # fmt: skip
