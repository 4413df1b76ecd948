"""The jobs of the measurement of learning, how processes share them, and its pictures and tables."""

import argparse
from xml.etree import ElementTree

from bench.learning.__main__ import Job, gather, list_jobs, share_jobs
from bench.learning.cells import Point
from bench.learning.plots import draw_world
from bench.learning.table import write_table
from trainer.math.intervals import Interval

EVERYTHING = {"quick": False, "model": "tiny", "arms": None, "worlds": None, "noises": None, "seeds": None}


def jobs_of(**changed: object) -> list[Job]:
    jobs = list_jobs(argparse.Namespace(**(EVERYTHING | changed)))
    return list({job.cell.key: job for job in jobs}.values())


def test_the_table_has_every_arm_in_each_world_noise_and_seed_and_one_ceiling_a_world_and_seed() -> None:
    jobs = jobs_of()
    arms = {job.cell.arm for job in jobs}
    assert {"offline", "online_dpo", "full", "ppo", "third", "shuffled", "sft_chosen", "best_of_4"} <= arms
    assert len(jobs) == 3 * (7 * (len(arms) - 1) + 3)


def test_a_real_model_is_measured_in_one_world_with_two_seeds_at_three_numbers_of_choices() -> None:
    jobs = [job for job in jobs_of(model="smollm2") if job.cell.arm != "ceiling"]
    assert {(job.cell.arm, job.cell.seed) for job in jobs} == {
        (arm, seed) for arm in ("offline", "full") for seed in (0, 1)
    }
    assert {job.arm.manner.grid for job in jobs} == {(100, 200, 400)}


def test_processes_share_whole_stages_and_leave_nothing_out() -> None:
    jobs = jobs_of()
    one, other = share_jobs(jobs, 0, 2), share_jobs(jobs, 1, 2)
    assert sorted(job.cell.key for job in one + other) == sorted(job.cell.key for job in jobs)
    stages = [{(job.cell.world, job.cell.seed) for job in some} for some in (one, other)]
    assert not stages[0] & stages[1]


def test_the_ceiling_of_a_world_stands_at_each_of_its_noises() -> None:
    jobs = jobs_of(worlds=["capitals"], arms=["offline"], seeds=[0])
    point = Point({"France": (0.8, 12)}, 0.1, 1.0)
    found = gather(jobs, {job.cell.key: {100: point} for job in jobs})
    assert set(found) == {("capitals", noise) for noise in (0.0, 0.2, 0.4)}
    assert all(set(cells) == {"ceiling", "offline"} for cells in found.values())


def test_a_picture_is_sound_and_has_a_line_an_arm() -> None:
    line = [(50, Interval(0.6, 0.5, 0.7, 3)), (100, Interval(0.8, 0.7, 0.9, 3))]
    drawn = draw_world("a < b", {"label noise 20%": {"offline": line, "full": line}}, {"label noise 20%": 0.75})
    root = ElementTree.fromstring(drawn)
    assert len(root.findall(".//{http://www.w3.org/2000/svg}polyline")) == 2
    assert "a < b" in "".join(root.itertext())


def test_a_table_has_win_rates_with_intervals_and_wrong_answers() -> None:
    points = {100: Point({"France": (0.75, 12), "Peru": (0.75, 12)}, 0.125, 1.0)}
    assert "| offline | 100 | 0.750 [0.750, 0.750] | 0.125 |" in write_table("capitals", {"offline": [points]})
