from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest

from bench.scale.plan import HEADROOM, REPORT_S, Load, make_plan
from bench.scale.render import show_number
from bench.scale.units import Assumed, Measured, read_measured, write_measured
from gateway.sections.rollout import RolloutSection

DOCS = Path(__file__).parents[2] / "docs"
UNIT = Measured(
    machine="by hand",
    request_cpu_us=100,
    event_cpu_us=50,
    gateway_rss_mb=200,
    open_stream_kb=20,
    completion_bytes=2000,
    comparison_cpu_us=300,
    comparison_bytes=2000,
    choice_cpu_us=400,
    choice_bytes=500,
    choices_per_s=1000,
    relay_cpu_us=50,
    event_bytes=5000,
    intake_cpu_us=100,
    inbox_bytes=4000,
)
LOAD = Load(
    requests_per_s=100, choices_per_day=864_000, peak=1, streamed_share=0.5, answer_tokens=100, answered_share=0.5
)


def test_a_request_costs_its_events_where_it_is_streamed() -> None:
    plan = make_plan(LOAD, UNIT, Assumed())
    assert plan.find("gateway", "CPU of a request") == pytest.approx((100 + 0.5 * 100 * 50) / 1000)


def test_the_gateways_cores_are_those_of_requests_second_answers_and_choices() -> None:
    # 100 requests/s and 20 comparisons/s of 2.6 ms each, 20 comparisons of .3 ms, 10 choices of .4 ms: .322 cores
    plan = make_plan(LOAD, UNIT, Assumed())
    assert plan.find("gateway", "cores in use") == pytest.approx(0.26 + 0.052 + 0.006 + 0.004)
    assert plan.find("gateway", "processes") == 1
    assert make_plan(replace(LOAD, peak=4), UNIT, Assumed()).find("gateway", "processes") == 3  # 1.288 / .6


def test_gpus_make_the_tokens_of_both_answers() -> None:
    plan = make_plan(LOAD, UNIT, Assumed(engine_tokens_per_s=1000))
    assert plan.find("engine", "GPUs") == 20  # 12,000 tokens/s / 1,000 / .6


def test_the_database_commits_choices_comparisons_and_reports() -> None:
    plan = make_plan(LOAD, UNIT, Assumed(database_gain=2))
    assert plan.find("database", "commits") == pytest.approx(10 + 20 + 1 / 0.5)
    assert plan.find("database", "of one server") == pytest.approx(100 * 32 / 2000)
    assert plan.find("database", "growth") == pytest.approx((1_728_000 * 2000 + 864_000 * 500) / 1e9)


def test_a_round_takes_its_flops() -> None:
    # 1,000 pairs x (500 + 2 x 100) tokens x 8 operations x 1e9 parameters on 1e15 flops at .5
    load = replace(LOAD, round_pairs=1000, prompt_tokens=500, active_params=1e9, round_gpus=2)
    plan = make_plan(load, UNIT, Assumed(gpu_flops=1e15, utilisation=0.5))
    assert plan.find("trainer", "a DPO round") == pytest.approx(5.6 / 60)


def test_what_fills_first_stands_first() -> None:
    limits = make_plan(LOAD, UNIT, Assumed(engine_tokens_per_s=1000)).single
    assert next(iter(limits)) == "one engine GPU"
    assert limits["one engine GPU"] == pytest.approx(HEADROOM * 1000 / 100)
    assert limits["one relay"] == pytest.approx(HEADROOM * 20_000 / 0.1)
    assert list(limits.values()) == sorted(limits.values())


def test_twice_the_load_needs_twice_the_gpus_and_never_less_of_anything() -> None:
    unit = read_measured()
    once, twice = (make_plan(Load(requests_per_s=n * 5000, choices_per_day=n * 5e6), unit, Assumed()) for n in (1, 2))
    for row, other in zip(once.rows, twice.rows, strict=True):
        assert other.value >= row.value, row
    assert twice.cost["engine GPUs"] == pytest.approx(2 * once.cost["engine GPUs"], rel=1e-3)


def test_reports_come_as_often_as_the_setting_says() -> None:
    assert RolloutSection().report_s == REPORT_S


def test_what_was_measured_is_read_as_it_was_kept(tmp_path: Path) -> None:
    write_measured(UNIT, tmp_path / "measured.json")
    assert read_measured(tmp_path / "measured.json") == UNIT


def test_numbers_have_three_digits() -> None:
    assert [show_number(x) for x in (123_456, 12.345, 0.012345)] == ["123,000", "12.3", "0.0123"]


def test_the_page_holds_the_same_figures() -> None:
    rendering = run_path(str(DOCS / "render_scale.py"))
    page = (DOCS / "scale.md").read_text()
    assert rendering["render_page"](page) == page, "run `make docs`"
