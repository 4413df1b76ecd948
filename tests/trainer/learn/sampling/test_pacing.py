"""The cap on samples under way follows how long people wait."""

from __future__ import annotations

import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from trainer.learn.sampling.first_tokens import ENGINE, GATEWAY, Pacer, parse_waits, read_waits
from trainer.learn.sampling.pacing import Limits, Pace, Waits, add_idle, choose_pace

LIMITS = Limits(lowest=2, highest=16, blind=4, slowdown=1.5)
EDGES = (0.1, 0.2, math.inf)
IDLE = Waits(EDGES, (100.0, 0.0, 0.0), 100.0)  # the 90th percentile is .09 s

PAGE = """
# HELP prefloop_time_to_first_token_seconds Streamed answers: wait for the first byte.
prefloop_time_to_first_token_seconds_bucket{arm="stable",le="0.1"} 6.0
prefloop_time_to_first_token_seconds_bucket{arm="stable",le="0.2"} 7.0
prefloop_time_to_first_token_seconds_bucket{arm="stable",le="+Inf"} 10.0
prefloop_time_to_first_token_seconds_bucket{arm="canary",le="0.1"} 1.0
prefloop_time_to_first_token_seconds_bucket{arm="canary",le="0.2"} 1.0
prefloop_time_to_first_token_seconds_bucket{arm="canary",le="+Inf"} 1.0
prefloop_time_to_first_token_seconds_count{arm="stable"} 10.0
prefloop_requests_total{arm="stable",code="200"} 30.0
prefloop_requests_total{arm="canary",code="200"} 2.0
prefloop_requests_in_flight 3.0
"""


def test_the_quantile_lies_straight_within_its_bucket() -> None:
    assert IDLE.quantile(0.9) == pytest.approx(0.09)
    waits = Waits(EDGES, (5.0, 5.0, 0.0))
    assert waits.quantile(0.9) == pytest.approx(0.18)  # the fourth of five between .1 and .2
    assert Waits(EDGES, (0.0, 0.0, 4.0)).quantile(0.9) == 0.2  # the last bucket has no end
    assert Waits().quantile(0.9) == 0.0


def test_people_who_wait_longer_halve_the_cap_down_to_the_lowest() -> None:
    pace = Pace(16)
    for expected in (8, 4, 2, 2):
        pace = choose_pace(pace, Waits(EDGES, (5.0, 5.0, 0.0), 10.0), IDLE, LIMITS)
        assert pace.cap == expected and pace.slowdown == pytest.approx(2.0)


def test_people_who_wait_no_longer_let_it_rise_one_at_a_time() -> None:
    pace = Pace(14)
    for expected in (15, 16, 16):
        pace = choose_pace(pace, Waits(EDGES, (10.0, 0.0, 0.0), 10.0), IDLE, LIMITS)
        assert pace.cap == expected and pace.slowdown == pytest.approx(1.0)


def test_without_a_word_of_how_long_people_wait_the_cap_is_low_and_says_so() -> None:
    silent = Waits(EDGES, (1.0, 0.0, 0.0), 60.0)  # sixty answers, one of them streamed
    for waits, idle, word in (
        (None, IDLE, "nothing says"),
        (silent, IDLE, "too few answers are streamed"),
        (Waits(EDGES, (10.0, 0.0, 0.0), 10.0), Waits(), "not known yet"),
        (Waits((1.0, math.inf), (10.0, 0.0), 10.0), IDLE, "not known yet"),  # another page's buckets
    ):
        pace = choose_pace(Pace(16), waits, idle, LIMITS)
        assert (pace.cap, pace.is_blind) == (4, True) and word in pace.reason
    assert choose_pace(Pace(2), None, IDLE, LIMITS).cap == 3


def test_while_nobody_asks_it_rises_and_while_few_do_it_stays() -> None:
    assert choose_pace(Pace(4), Waits(EDGES, (0.0, 0.0, 0.0)), IDLE, LIMITS).cap == 5
    waiting = Waits(EDGES, (0.0, 0.0, 0.0), 0.0, num_open=1.0)
    assert choose_pace(Pace(4), waiting, IDLE, LIMITS) == Pace(4)
    assert choose_pace(Pace(4), Waits(EDGES, (0.0, 7.0, 0.0), 7.0), IDLE, LIMITS) == Pace(4)


def test_counters_are_read_over_all_labels() -> None:
    assert parse_waits(PAGE) == Waits(EDGES, (7.0, 1.0, 3.0), 32.0, 3.0)
    engine = 'vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 2.0\nvllm:num_requests_running 1.0\n'
    assert parse_waits(engine, ENGINE) == Waits((0.1,), (2.0,), 0.0, 1.0)


class Page(BaseHTTPRequestHandler):
    """The same page of figures for a gateway and an engine, one of whose values is no number for the gateway."""

    def do_GET(self) -> None:
        said = f'{GATEWAY[1]} many\n{ENGINE[0]}_bucket{{le="0.1"}} 2.0\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_page_that_cannot_be_read_is_one_that_says_nothing() -> None:
    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    assert read_waits(url, [f"{url}/v1"]) == Waits((0.1,), (2.0,))
    assert read_waits(url, []) is None and read_waits("no url", []) is None
    server.shutdown()
    server.server_close()


def test_a_window_is_what_came_since_also_after_a_restart() -> None:
    before, after = Waits(EDGES, (5.0, 1.0, 0.0), 8.0), Waits(EDGES, (7.0, 1.0, 1.0), 12.0, 2.0)
    assert after.minus(before) == Waits(EDGES, (2.0, 0.0, 1.0), 4.0, 2.0)
    assert before.minus(after) == before
    assert after.minus(Waits((1.0,), (9.0,), 9.0)) == Waits(EDGES, (0.0, 0.0, 0.0), 0.0, 2.0)


def test_old_idle_time_fades() -> None:
    idle = add_idle(Waits(EDGES, (4000.0, 0.0, 0.0), 4000.0), Waits(EDGES, (0.0, 50.0, 0.0), 50.0))
    assert idle.counts == (1000.0, 50.0, 0.0)
    assert add_idle(IDLE, Waits()) == IDLE


def test_the_pacer_holds_a_window_against_the_time_without_samples() -> None:
    counters: list[Waits | None] = []
    told: list[Pace] = []
    pacer = Pacer(lambda: counters[-1], LIMITS, told.append)
    counters.append(Waits(EDGES, (100.0, 0.0, 0.0), 100.0))
    pacer.begin()
    counters.append(Waits(EDGES, (100.0, 4.0, 0.0), 104.0))
    assert pacer.choose_limit() == 4  # four are too few to say
    counters.append(Waits(EDGES, (100.0, 8.0, 0.0), 108.0))
    assert pacer.choose_limit() == 2  # eight since it began
    assert told[-1].reason == "people wait longer" and told[-1].slowdown == pytest.approx(0.19 / 0.09, rel=1e-2)
    counters.append(None)
    assert pacer.choose_limit() == 3 and told[-1].is_blind
    counters.append(Waits(EDGES, (100.0, 8.0, 0.0), 108.0))
    assert pacer.choose_limit() == 3  # heard again: a window begins
    pacer.end()
    counters.append(Waits(EDGES, (300.0, 8.0, 0.0), 308.0))
    pacer.begin()
    assert pacer.choose_limit() == 4 and not told[-1].is_blind  # nobody has asked since
    assert [pace.cap for pace in pacer.paces] == [4, 2, 3, 3, 4]
    assert pacer.figures() == {
        "samples_cap": 3.2, "samples_cap_lowest": 2.0, "samples_blind": 0.4,
        "sampling_slowdown": pytest.approx(0.19 / 0.09, rel=1e-2),
    }  # fmt: skip
    pacer.forget()
    assert pacer.figures() == {}
