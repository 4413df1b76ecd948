"""Cells of the measurement of learning: keys that follow everything a result hangs on, and files that survive a kill."""

from dataclasses import replace
from pathlib import Path

from bench.learning.arms import make_arms, with_grid
from bench.learning.cells import Cell, Point, Results
from bench.learning.table import summarise

OFFLINE = make_arms("tiny")["offline"]
CELL = Cell("tiny", "capitals", 0.2, 1, "offline", OFFLINE.settings)
POINT = Point({"France": (0.75, 12)}, wrong=0.125, cpu_s=3.5, figures={"loss": 0.6})


def test_a_key_follows_every_part_of_the_configuration() -> None:
    others = [
        replace(CELL, world="elements"),
        replace(CELL, noise=0.4),
        replace(CELL, seed=2),
        replace(CELL, arm="full"),
        replace(CELL, model="smollm2"),
        replace(CELL, settings=with_grid(OFFLINE, (50,)).settings),
    ]
    assert len({CELL.key, *(other.key for other in others)}) == 7
    assert Cell("tiny", "capitals", 0.2, 1, "offline", OFFLINE.settings).key == CELL.key


def test_points_come_back_as_they_were_kept(tmp_path: Path) -> None:
    results = Results(tmp_path, None)
    assert results.load(CELL) == {}
    results.save(CELL, {100: POINT})
    assert results.load(CELL) == {100: POINT}
    assert results.load(replace(CELL, seed=5)) == {}


def test_what_comes_with_the_project_is_not_measured_again_unless_it_was_measured_here(tmp_path: Path) -> None:
    shipped, here = Results(tmp_path / "measured"), Results(tmp_path / "cells", tmp_path / "measured")
    shipped.save(CELL, {100: POINT})
    assert here.load(CELL) == {100: POINT}
    here.save(CELL, {50: POINT})
    assert here.load(CELL) == {50: POINT}
    assert Results(tmp_path / "others", None).load(CELL) == {}


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    results = Results(tmp_path, None)
    (tmp_path / CELL.file_name).write_text('{"points": {"100": {"wi')
    assert results.load(CELL) == {}


def point_at(rate: float) -> Point:
    return replace(POINT, wins={"France": (rate, 12), "Peru": (rate, 12)})


def test_a_summary_has_choices_of_each_arm_and_what_was_not_reached_as_null() -> None:
    cells = {
        "ceiling": [{0: point_at(0.875)}],
        "offline": [{100: point_at(0.6), 200: point_at(0.7), 400: point_at(0.8)}],
        "online_dpo": [{100: point_at(0.6), 200: point_at(0.65), 400: point_at(0.7)}],
        "full": [{50: point_at(0.7), 80: point_at(0.8), 100: point_at(0.85)}],
    }
    summary = summarise(cells)
    assert summary["target"] == 0.8
    assert summary["offline"] == {"value": 400.0, "low": 400.0, "high": 400.0}
    assert summary["online_dpo"]["value"] is None
    assert summary["full"]["value"] == 80.0
    assert summary["full_over_offline"]["value"] == 0.2
    assert summary["full_over_online"]["value"] == 0.2
