"""The plan of a chaos run: everyone dies often enough, at every kind of moment, and a seed plans one run."""

from bench.chaos.schedule import CHANCES, ELSEWHERE, SHARES, plan_lives, share_kills
from feedback.faults import POINTS


def test_200_kills_end_each_process_at_least_20_times():
    assert share_kills(200, list(SHARES)) == {
        "gateway": 48, "engine": 48, "trainer": 44, "broker": 30, "postgresql": 30,
    }  # fmt: skip
    embedded = share_kills(200, ["gateway", "engine", "trainer"])
    assert sum(embedded.values()) == 200 and min(embedded.values()) >= 20


def test_kills_add_up_however_few_there_are():
    for num in range(5, 40):
        assert sum(share_kills(num, list(SHARES)).values()) == num


def test_a_seed_plans_one_run_and_another_seed_another():
    assert list(plan_lives("trainer", 32, 1500, 7)) == list(plan_lives("trainer", 32, 1500, 7))
    assert list(plan_lives("trainer", 32, 1500, 7)) != list(plan_lives("trainer", 32, 1500, 8))


def test_every_boundary_is_planned_several_times_in_200_kills():
    kills = share_kills(200, list(SHARES))
    lives = [life for name, num in kills.items() for life in plan_lives(name, num, 1500, 1)]
    assert len(lives) == 200
    assert POINTS.keys() == CHANCES.keys() | ELSEWHERE
    for point in CHANCES:
        assert sum(life.fault == point for life in lives) >= 3
