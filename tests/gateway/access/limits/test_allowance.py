"""Windows, leases and what is granted, by numbers computed by hand."""

import pytest

from gateway.access.limits.allowance import Allowance, KeyLimits, build_windows, format_duration
from gateway.access.limits.leases import DAY_S, NANO, Grant, LeaseRequest, Window, decide_grant, find_window

NOON = 12 * 3600.0  # a minute begins here


def ask(limit: int = 100, *, owed: int = 0, need: int = 0, want: int = 0) -> LeaseRequest:
    return LeaseRequest("k", "requests", 60, int(NOON), limit, owed, need, want)


def make_window(limit: int = 6400, kind: str = "requests") -> Window:
    return Window("k", kind, limit, 60, NOON)  # type: ignore[arg-type]


def lease(window: Window, *, num_waiting: int = 0, used: int = 0) -> Grant:
    """Exchange what the window asks for, with `used` units gone already."""
    asked = window.request(num_waiting)
    assert asked is not None
    granted = decide_grant(asked, used)
    grant = Grant(granted, asked.limit - used - granted)
    assert window.take(asked, grant) is None
    return grant


def test_windows_begin_at_whole_minutes_and_days_of_utc() -> None:
    assert find_window(119.999, 60) == 60 and find_window(120.0, 60) == 120
    assert find_window(2 * DAY_S - 0.001, DAY_S) == DAY_S


@pytest.mark.parametrize(
    ("asked", "used", "granted"),
    [
        (ask(need=1), 0, 1),
        (ask(want=50), 0, 6),  # ahead of need a sixteenth of the room
        (ask(want=4), 0, 4),
        (ask(need=30, want=50), 0, 30),
        (ask(need=30), 95, 5),  # what there is
        (ask(need=1, want=9), 100, 0),
        (ask(need=1), 130, 0),  # the limit was lowered
        (ask(want=50), 90, 0),  # too little left to take ahead of need
        (ask(owed=20, need=1), 95, 20),  # a debt is booked beyond the limit, and nothing else
        (ask(owed=10, need=5), 0, 15),
        (ask(owed=-5), 100, -5),
        (ask(0, need=1), 0, 0),
    ],
)
def test_a_grant_is_what_is_needed_or_a_small_part_of_the_rest(asked: LeaseRequest, used: int, granted: int) -> None:
    assert decide_grant(asked, used) == granted


def test_a_key_gets_a_window_for_each_limit_that_is_set() -> None:
    windows = build_windows("k", KeyLimits(requests_per_minute=5, tokens_per_day=7, budget_per_day=0.25), NOON)
    assert [(m.kind, m.length_s, m.limit) for m in windows] == [
        ("requests", 60, 5),
        ("tokens", DAY_S, 7),
        ("budget", DAY_S, NANO // 4),
    ]
    assert build_windows("k", KeyLimits(), NOON) == ()


def test_the_first_lease_is_a_small_part_of_the_limit_and_at_least_what_waits() -> None:
    window = make_window(6400)
    assert lease(window, num_waiting=1) == Grant(100, 6300)  # a 64th
    small = make_window(10)
    assert lease(small, num_waiting=3) == Grant(3, 7)
    assert small.request(3) is None and small.request(4) is not None


def test_a_lease_grows_with_the_pace_and_is_topped_up_below_half() -> None:
    window = make_window(64_000)
    lease(window, num_waiting=1)
    assert window.lease == 1000
    window.lease -= 100  # for 16 ticks of 100, 1,600 should be held, and 900 are more than half of it
    assert window.measure_pace() is None and window.request(0) is None
    window.lease -= 200  # 3,200, of which 700 are held
    assert window.measure_pace() is None
    assert lease(window, used=1000).granted == 2500
    assert window.lease == 3200


def test_no_lease_is_taken_ahead_when_little_is_left() -> None:
    window = make_window(100)
    lease(window, num_waiting=2, used=90)
    window.lease -= 2
    window.measure_pace()
    assert window.left == 8 and window.request(0) is None  # the next request asks for itself


def test_a_lease_that_is_not_used_is_handed_back() -> None:
    window = make_window(6400)
    lease(window, num_waiting=1)
    window.lease -= 1
    assert [window.measure_pace() for _ in range(8)] == [None] * 8  # it was used, then seven ticks of nothing
    surplus = window.measure_pace()
    assert surplus is not None and decide_grant(surplus, 100) == -99
    assert window.lease == 0 and window.left == 6399 and window.is_idle


def test_a_limit_is_exhausted_only_when_the_table_said_so() -> None:
    window = make_window(10)
    assert not window.is_exhausted
    lease(window, num_waiting=1, used=9)
    assert not window.is_exhausted  # one is held
    window.lease -= 1
    assert window.is_exhausted
    window.roll(NOON + 60)
    assert not window.is_exhausted


def test_a_debt_is_booked_and_nothing_more_is_granted() -> None:
    window = make_window(100, "tokens")
    assert lease(window, num_waiting=3, used=90).granted == 3
    window.lease -= 40
    assert lease(window, num_waiting=1, used=93) == Grant(37, -30)
    assert window.lease == 0 and window.is_exhausted


def test_a_window_that_ends_hands_back_and_the_next_one_takes_what_was_leased_ahead() -> None:
    window = make_window(64_000)
    lease(window, num_waiting=1)
    window.lease -= 50
    assert window.request_ahead(NOON + 58.9) is None
    ahead = window.request_ahead(NOON + 59.0)
    assert ahead is not None and (ahead.starts_at, ahead.want) == (int(NOON) + 60, 1000)
    assert window.take(ahead, Grant(1000, 63_000)) is None
    assert window.lease == 950 and window.request_ahead(NOON + 59.5) is None
    assert window.roll(NOON + 59.999) == []
    assert window.roll(NOON + 60) == [ask(64_000, owed=-950)]
    assert (window.lease, window.left, window.starts_at) == (1000, 63_000, int(NOON) + 60)


def test_what_was_leased_of_a_window_that_never_came_is_handed_back() -> None:
    window = make_window(64_000)
    assert window.take(ask(64_000)._replace(starts_at=int(NOON) + 60, want=9), Grant(9, 1)) is None
    assert window.roll(NOON + 200) == [ask(64_000, owed=-9)._replace(starts_at=int(NOON) + 60)]
    assert (window.lease, window.left) == (0, 64_000)


def test_a_grant_that_comes_after_its_window_is_handed_back() -> None:
    window = make_window(100, "tokens")
    window.lease = -7
    asked = window.request(1)
    assert asked is not None and asked.owed == 7
    assert window.roll(NOON + 60) == [asked._replace(need=0, want=0)]  # the debt is booked on leaving
    late = window.take(asked, Grant(8, 92))
    assert late == asked._replace(owed=-8, need=0, want=0)  # so this is booked twice
    assert window.lease == 0


def test_a_closed_window_takes_nothing() -> None:
    window = make_window(100)
    asked = window.request(5)
    assert asked is not None and window.close() == []
    assert window.take(asked, Grant(5, 95)) == ask(owed=-5)


def test_a_clock_that_jitters_stays_in_the_window_and_one_that_goes_back_leaves_it() -> None:
    window = make_window(100)
    lease(window, num_waiting=3)
    assert window.roll(NOON - 4.9) == [] and window.lease == 3
    assert window.roll(NOON - 5.1) == [ask(owed=-3)]
    assert window.starts_at == NOON - 60 and window.lease == 0


def test_headers_show_the_window_with_least_left() -> None:
    limits = KeyLimits(requests_per_minute=60, requests_per_day=1000, tokens_per_minute=500)
    allowance = Allowance("k", limits, NOON)
    for window in allowance.windows:
        lease(window, num_waiting=1)
    allowance.fill()
    allowance.requests -= 1
    assert allowance.render_headers(NOON + 0.5) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\nx-ratelimit-reset-requests: 1m0s\r\n"
        b"x-ratelimit-limit-tokens: 500\r\nx-ratelimit-remaining-tokens: 500\r\nx-ratelimit-reset-tokens: 1m0s\r\n"
    )
    _, per_day, tokens = allowance.windows
    per_day.left = 7
    per_day.lease = 3
    tokens.lease = -900  # overspent
    assert allowance.render_headers(NOON + 30) == (
        b"x-ratelimit-limit-requests: 1000\r\nx-ratelimit-remaining-requests: 10\r\n"
        b"x-ratelimit-reset-requests: 11h59m30s\r\n"
        b"x-ratelimit-limit-tokens: 500\r\nx-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 30s\r\n"
    )


def test_what_is_spent_is_spent_from_every_window() -> None:
    limits = KeyLimits(requests_per_minute=60, requests_per_day=1000, budget_per_day=1.0)
    allowance = Allowance("k", limits, NOON)
    assert not allowance.fill() and allowance.requests == allowance.budget == 0
    allowance.budget -= 5  # an answer that was asked for before
    for window, granted in zip(allowance.windows, (3, 8, NANO), strict=True):
        asked = window.request(1)
        assert asked is not None
        window.take(asked, Grant(granted, 10))
    assert allowance.fill()
    assert (allowance.requests, allowance.tokens > 10**18, allowance.budget) == (3, True, NANO - 5)
    allowance.requests -= 2
    allowance.windows[0].lease += 4  # granted meanwhile: there once it is filled again
    allowance.requests -= 1
    assert [window.lease for window in allowance.windows] == [4, 5, NANO - 5]
    assert allowance.requests == allowance.budget == 0
    assert allowance.fill() and allowance.requests == 4


def test_a_refusal_waits_for_the_last_window_that_is_used_up() -> None:
    allowance = Allowance("k", KeyLimits(requests_per_minute=2, budget_per_day=1.5), NOON)
    lease(allowance.windows[0], num_waiting=1, used=2)
    error = allowance.make_refusal(NOON + 10.2)
    assert (error.status, error.code, error.headers["retry-after"]) == (429, "rate_limit_exceeded", "50")
    assert error.message == "Limit reached: requests per minute, 2. Try again in 50s."
    lease(allowance.windows[1], num_waiting=1, used=2 * NANO)
    error = allowance.make_refusal(NOON + 10.2)
    assert (error.code, error.headers["retry-after"]) == ("insufficient_quota", str(12 * 3600 - 10))
    assert error.message == "Limit reached: budget per day, 1.5. Try again in 11h59m50s."
    assert error.headers["x-ratelimit-remaining-requests"] == "0"


def test_durations_read_as_in_openais_headers() -> None:
    shown = [format_duration(seconds) for seconds in (-1, 0, 0.2, 59.5, 360, 3605, 86_400)]
    assert shown == ["0s", "0s", "1s", "1m0s", "6m0s", "1h0m5s", "24h0m0s"]
