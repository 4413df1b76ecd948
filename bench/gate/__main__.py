"""How often the gate errs and how many users it needs: `python -m bench.gate [--rollouts N] [--seed N] [--quick]`.

The gateway's own pure functions, on simulated people and first requests, looked at after every user. Single duels are
computed exactly, the rest is simulated. A line for each figure; the last one is a JSON object. Exit status 1 if a figure
is not what it must be.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np

from bench.gate.divergence import MARGIN, draw_rare, draw_unequal, share_crossed
from bench.gate.figures import Row, about, at_most, error_of_share, render
from bench.gate.first_requests import Rates, looks_passed
from bench.gate.paths import (
    compute_ever_crossed,
    count_peeking,
    draw_scores,
    estimate_error,
    find_all_crossings,
    find_crossings,
    find_power,
    find_simulated_power,
)
from bench.gate.people import People, ask_people, list_scores, sum_up_all
from bench.gate.timing import measure_decision

CAP = 5
_HEAVY = People(correlation=0.3, heavy=True, failing=0.02)
_BIASED = People(first_bias=0.15, heavy=True, correlation=0.3, failing=0.02)
_NULL_ERRORS = Rates(canary=0.15, stable=0.10)  # exactly 1.5 times stable's, and above the ceiling of 10%


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.gate", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000, help="simulated rollouts of each kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rollouts")
    return parser.parse_args()


def share_promoted(people: People, users: int, rollouts: int, rng: np.random.Generator) -> float:
    """The share of rollouts in which E+ ever reaches its line, looking after every user."""
    crossings = (find_crossings(list_scores(ask_people(people, users, rng), CAP), CAP) for _ in range(rollouts))
    return sum(better <= users for better, _ in crossings) / rollouts


def share_promoted_by_retries(rollouts: int, rng: np.random.Generator, *, tries: int = 5, users: int = 300) -> float:
    """The same over retries of one pair: users of earlier tries come back, and each enters once, with all duels."""
    num = 0
    for _ in range(rollouts):
        duels: dict[str, list] = {}
        for number in range(tries):
            new = ask_people(_HEAVY, users, rng, began_at=number * 10_000.0, prefix=f"{number}-")
            back = ask_people(
                _HEAVY, users // 3, rng, began_at=number * 10_000.0 + 5_000, prefix=f"{max(0, number - 1)}-"
            )
            for one in (new, back):
                for user, own in one.items():
                    duels.setdefault(user, []).extend(own)
        num += find_crossings(list_scores(duels, CAP), CAP)[0] <= len(duels)
    return num / rollouts


def measure_power(rollouts: int, rng: np.random.Generator) -> list[Row]:
    """Users until 80% of rollouts at 55 to 45 promote, with more duels a user; and exactly, with one."""
    rows = [
        Row("users for 80% power at 55/45, one duel a user", find_power(compute_ever_crossed(0.55, 1300)), about(1196)),
        Row("users for 80% power at 60/40, one duel a user", find_power(compute_ever_crossed(0.60, 400)), about(295)),
    ]
    for duels, correlation, expected, most in (
        (2, 0.0, 615, 800),
        (3, 0.0, 389, 520),
        (5, 0.0, 233, 330),
        (5, 0.3, 518, 700),
    ):
        scores = draw_scores(0.55, duels, rollouts, most, rng, correlation=correlation)
        crossings = find_all_crossings(scores, duels)[0]
        name = f"the same with {duels} duels a user" + (", ICC .3" if correlation else "")
        rows.append(Row(name, find_simulated_power(crossings), about(expected), estimate_error(crossings, rng)))
    return rows


def measure_outcomes(win: float, rollouts: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Shares promoted, rolled back and inconclusive within 2,000 users of one duel, a quarter of them ties."""
    better, worse = find_all_crossings(draw_scores(win, 1, rollouts, 2000, rng, ties=0.25), 1)
    promoted, back = float(np.mean(better < worse)), float(np.mean(worse < better))
    return promoted, back, 1 - promoted - back


def measure_passes(paired_share: float, num: int, rng: np.random.Generator, show_share: Callable[..., float]) -> float:
    """The share of rollouts whose guardrail on errors ever passes where it must not."""
    passed = sum(looks_passed(_NULL_ERRORS, 1200, paired_share, rng, look_every=40) for _ in range(num)) / num
    return show_share(
        f"errors pass at 15% against 10%, {paired_share:.0%} of first requests paired", passed, at_most(0.05), num
    )


def measure(rollouts: int, seed: int, show: Callable[[Row], None]) -> dict[str, float]:
    """Every figure, shown as it is found. Returns those of the last line."""
    rng = np.random.default_rng(seed)

    def show_share(name: str, share: float, expected: tuple[float, float], num: int = rollouts) -> float:
        show(Row(name, share, expected, error_of_share(share, num)))
        return share

    show_share(
        "a plain z-test at every vote, equal policies, 1,000 votes", count_peeking(rollouts, 1000, rng), (0.36, 0.50)
    )
    equal = float(compute_ever_crossed(0.5, 6000)[-1])
    show(Row("false promotion at 50/50 over 6,000 users", equal, about(0.039, 0.015)))
    heavy = show_share(
        "the same with heavy users, ICC .3, ties, failed duels; 1,000 users",
        share_promoted(_HEAVY, 1000, rollouts, rng),
        at_most(0.05),
    )
    biased = show_share(
        "the same with 15 points for the first place", share_promoted(_BIASED, 1000, rollouts, rng), at_most(0.05)
    )
    retried = show_share(
        "the same over five tries of the same pair",
        share_promoted_by_retries(rollouts // 2, rng),
        at_most(0.05),
        rollouts // 2,
    )
    passed = max(measure_passes(share, max(50, rollouts // 4), rng, show_share) for share in (0.0, 0.5, 1.0))
    power = measure_power(rollouts, rng)
    for row in power:
        show(row)
    promoted, back, open_ended = measure_outcomes(0.45, rollouts, rng)
    show_share("45/55 with 25% ties: promoted", promoted, about(0.004))
    show_share("45/55 with 25% ties: rolled back", back, about(0.893))
    show_share("45/55 with 25% ties: inconclusive", open_ended, about(0.103))
    show_share("60/40 with 25% ties: promoted", measure_outcomes(0.60, rollouts, rng)[0], about(0.999))
    unequal = show_share(
        "the divergence passes at its margin, very unequal answers",
        share_crossed(draw_unequal(0.3, MARGIN, rollouts, rng), beyond=False),
        at_most(0.05),
    )
    rare = show_share(
        "the same, one answer in eight far away", share_crossed(draw_rare(rollouts, rng), beyond=False), at_most(0.05)
    )
    decision_ms, reading_ms = measure_decision(sum_up_all, rng)
    show(Row("CPU ms of a decision at 100,000 duels", decision_ms, at_most(50.0)))
    print(f"     (summing up the 100,000 duels: {reading_ms:.0f} ms of CPU more)")
    return {
        "false_promotion": equal,
        "false_promotion_heavy_users": heavy,
        "false_promotion_position_bias": biased,
        "false_promotion_retries": retried,
        "false_pass_errors_at_null": passed,
        "users_80_power_55": power[0].found,
        "users_80_power_60": power[1].found,
        "rolled_back_4555": back,
        "false_pass_divergence_at_margin": max(unequal, rare),
        "decision_ms_100k": decision_ms,
    }


def main() -> int:
    """Run the bench. Returns the exit status."""
    arguments = parse_arguments()
    rollouts = max(50, arguments.rollouts // 10) if arguments.quick else arguments.rollouts
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        print(render(row), flush=True)

    began = time.monotonic()
    figures = measure(rollouts, arguments.seed, show)
    print(f"{rollouts} rollouts of each kind, seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main())
