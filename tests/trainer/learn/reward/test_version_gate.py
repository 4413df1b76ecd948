"""Which version of the reward model may be used."""

import pytest

from trainer.learn.reward.prequential import Foreseen, Prequential
from trainer.learn.reward.version_gate import (
    Comparison,
    VersionFigures,
    VersionVerdict,
    compare_versions,
    is_clearly_below,
    judge_version,
    read_figures,
)

PLAIN = VersionFigures((280, 400))


def judge(new: VersionFigures, last: VersionFigures) -> VersionVerdict:
    return judge_version(PLAIN, Comparison(new, last))


def test_the_first_version_is_compared_with_none() -> None:
    assert judge_version(VersionFigures((60, 100))).ok


def test_a_version_that_foresees_clearly_less_is_not_used() -> None:
    verdict = judge(VersionFigures((220, 400)), VersionFigures((280, 400)))
    assert verdict.failures == ("prequential accuracy fell from 70% to 55%",)
    assert not verdict.ok


def test_a_little_less_is_no_failure() -> None:
    assert judge(VersionFigures((270, 400)), VersionFigures((280, 400))).ok


def foresee(num: int, num_right: int, first: int = 0) -> list[Foreseen]:
    """Of so many choices, all for the first answer, the first num_right as they came."""
    return [
        Foreseen(str(first + i), "first", 1.0 if i < num_right else -1.0, app="chat" if i % 2 else "mail")
        for i in range(num)
    ]


def test_choices_that_grow_harder_refuse_no_version() -> None:
    """80% of 400 while the version in use was new, 75% of the next 400: that one has 72% of these."""
    record = Prequential(400, foresee(400, 320))
    record.add(foresee(400, 300, first=400))
    since = compare_versions(record, foresee(400, 288, first=400), (60, 100), (58, 100))
    assert (since.new.foreseen, since.last.foreseen) == ((300, 400), (288, 400))
    assert judge_version(PLAIN, since).ok


def test_a_version_that_loses_on_the_choices_since_is_refused_whatever_came_before() -> None:
    record = Prequential(400, foresee(300, 300))
    record.add(foresee(100, 60, first=300))
    since = compare_versions(record, [*foresee(100, 80, first=300), *foresee(9, 9, first=900)])
    assert (since.new.foreseen, since.last.foreseen) == ((60, 100), (80, 100))
    assert judge_version(PLAIN, since).failures[0] == "prequential accuracy fell from 80% to 60%"
    assert since.last.slices == {"app=chat": (40, 50), "app=mail": (40, 50)}


def test_without_any_choice_since_there_is_nothing_to_lose() -> None:
    record = Prequential(400, foresee(100, 60))
    since = compare_versions(record, [])
    assert (since.new.foreseen, since.last.foreseen) == ((0, 0), (0, 0))
    assert judge_version(PLAIN, since).ok


def test_held_out_choices_judge_too_where_there_are_enough() -> None:
    new, last = VersionFigures((280, 400), (50, 100)), VersionFigures((280, 400), (75, 100))
    assert judge(new, last).failures == ("held-out accuracy fell from 75% to 50%",)
    assert judge(VersionFigures((280, 400), (10, 40)), VersionFigures((280, 400), (38, 40))).ok


def test_chances_that_are_far_off_are_a_failure() -> None:
    assert judge_version(VersionFigures((70, 100), calibration_error=0.2)).failures == (
        "its chances are off by 20% on average",
    )
    assert judge_version(VersionFigures((14, 20), calibration_error=0.2)).ok


def test_a_slice_that_is_lost_is_named() -> None:
    new = VersionFigures((280, 400), slices={"app=chat": (90, 100), "app=mail": (40, 100), "app=few": (1, 9)})
    last = VersionFigures((280, 400), slices={"app=chat": (70, 100), "app=mail": (70, 100), "app=few": (9, 9)})
    assert judge(new, last).failures == ("accuracy in app=mail fell from 70% to 40%",)


def test_what_is_too_good_is_suspected() -> None:
    verdict = judge_version(VersionFigures((170, 200), (45, 50)))
    assert verdict.ok
    assert [warning[:50] for warning in verdict.warnings] == [
        "suspect leakage: prequential accuracy is 85%, and ", "suspect leakage: held-out accuracy is 90%, and peo"
    ]  # fmt: skip
    assert judge_version(VersionFigures((78, 100))).warnings == ()


def test_clearly_below_is_one_sided() -> None:
    # (41/82 = .5, 61/82 = .744): difference -.244, error sqrt(.25/82 + .1905/82) = .0733: -.244 + .1206 < 0
    assert is_clearly_below((40, 80), (60, 80), 0.05)
    assert not is_clearly_below((60, 80), (40, 80), 0.05)
    assert not is_clearly_below((52, 80), (60, 80), 0.05)


def test_figures_are_read_from_a_record() -> None:
    rows = [Foreseen(str(i), "first" if i % 4 else "second", 1.1, app="chat") for i in range(200)]
    figures = read_figures(Prequential(rows=rows), (5, 9))
    assert (figures.foreseen, figures.heldout, dict(figures.slices)) == ((150, 200), (5, 9), {"app=chat": (150, 200)})
    assert figures.calibration_error == pytest.approx(0, abs=0.03)
