"""Windows, leases and what is granted, by numbers computed by hand."""

import pytest

from gateway.access.limits.account import Account, format_duration
from gateway.access.limits.allowance import (
    DAY_S,
    NANO,
    Ask,
    Grant,
    KeyLimits,
    Meter,
    build_meters,
    decide_grant,
    find_window,
)

NOON = 12 * 3600.0  # a minute begins here


def ask(limit: int = 100, *, owed: int = 0, need: int = 0, want: int = 0) -> Ask:
    return Ask("k", "requests", 60, int(NOON), limit, owed, need, want)


def make_meter(limit: int = 6400, kind: str = "requests") -> Meter:
    return Meter("k", kind, limit, 60, NOON)  # type: ignore[arg-type]


def lease(meter: Meter, *, num_waiting: int = 0, used: int = 0) -> Grant:
    """Exchange what the meter asks for, with `used` units gone already."""
    asked = meter.ask(num_waiting)
    assert asked is not None
    granted = decide_grant(asked, used)
    grant = Grant(granted, asked.limit - used - granted)
    assert meter.take(asked, grant) is None
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
def test_a_grant_is_what_is_needed_or_a_small_part_of_the_rest(asked: Ask, used: int, granted: int) -> None:
    assert decide_grant(asked, used) == granted


def test_a_key_gets_a_meter_for_each_limit_that_is_set() -> None:
    meters = build_meters("k", KeyLimits(requests_per_minute=5, tokens_per_day=7, budget_per_day=0.25), NOON)
    assert [(m.kind, m.length_s, m.limit) for m in meters] == [
        ("requests", 60, 5),
        ("tokens", DAY_S, 7),
        ("budget", DAY_S, NANO // 4),
    ]
    assert build_meters("k", KeyLimits(), NOON) == ()


def test_the_first_lease_is_a_small_part_of_the_limit_and_at_least_what_waits() -> None:
    meter = make_meter(6400)
    assert lease(meter, num_waiting=1) == Grant(100, 6300)  # a 64th
    small = make_meter(10)
    assert lease(small, num_waiting=3) == Grant(3, 7)
    assert small.ask(3) is None and small.ask(4) is not None


def test_a_lease_grows_with_the_pace_and_is_topped_up_below_half() -> None:
    meter = make_meter(64_000)
    lease(meter, num_waiting=1)
    assert meter.lease == 1000
    meter.lease -= 100  # for 16 ticks of 100, 1,600 should be held, and 900 are more than half of it
    assert meter.measure_pace() is None and meter.ask(0) is None
    meter.lease -= 200  # 3,200, of which 700 are held
    assert meter.measure_pace() is None
    assert lease(meter, used=1000).granted == 2500
    assert meter.lease == 3200


def test_no_lease_is_taken_ahead_when_little_is_left() -> None:
    meter = make_meter(100)
    lease(meter, num_waiting=2, used=90)
    meter.lease -= 2
    meter.measure_pace()
    assert meter.left == 8 and meter.ask(0) is None  # the next request asks for itself


def test_a_lease_that_is_not_used_is_handed_back() -> None:
    meter = make_meter(6400)
    lease(meter, num_waiting=1)
    meter.lease -= 1
    assert [meter.measure_pace() for _ in range(8)] == [None] * 8  # it was used, then seven ticks of nothing
    surplus = meter.measure_pace()
    assert surplus is not None and decide_grant(surplus, 100) == -99
    assert meter.lease == 0 and meter.left == 6399 and meter.is_idle


def test_a_limit_is_exhausted_only_when_the_table_said_so() -> None:
    meter = make_meter(10)
    assert not meter.is_exhausted
    lease(meter, num_waiting=1, used=9)
    assert not meter.is_exhausted  # one is held
    meter.lease -= 1
    assert meter.is_exhausted
    meter.roll(NOON + 60)
    assert not meter.is_exhausted


def test_a_debt_is_booked_and_nothing_more_is_granted() -> None:
    meter = make_meter(100, "tokens")
    assert lease(meter, num_waiting=3, used=90).granted == 3
    meter.lease -= 40
    assert lease(meter, num_waiting=1, used=93) == Grant(37, -30)
    assert meter.lease == 0 and meter.is_exhausted


def test_a_window_that_ends_hands_back_and_the_next_one_takes_what_was_leased_ahead() -> None:
    meter = make_meter(64_000)
    lease(meter, num_waiting=1)
    meter.lease -= 50
    assert meter.ask_ahead(NOON + 58.9) is None
    ahead = meter.ask_ahead(NOON + 59.0)
    assert ahead is not None and (ahead.starts_at, ahead.want) == (int(NOON) + 60, 1000)
    assert meter.take(ahead, Grant(1000, 63_000)) is None
    assert meter.lease == 950 and meter.ask_ahead(NOON + 59.5) is None
    assert meter.roll(NOON + 59.999) == []
    assert meter.roll(NOON + 60) == [ask(64_000, owed=-950)]
    assert (meter.lease, meter.left, meter.starts_at) == (1000, 63_000, int(NOON) + 60)


def test_what_was_leased_of_a_window_that_never_came_is_handed_back() -> None:
    meter = make_meter(64_000)
    assert meter.take(ask(64_000)._replace(starts_at=int(NOON) + 60, want=9), Grant(9, 1)) is None
    assert meter.roll(NOON + 200) == [ask(64_000, owed=-9)._replace(starts_at=int(NOON) + 60)]
    assert (meter.lease, meter.left) == (0, 64_000)


def test_a_grant_that_comes_after_its_window_is_handed_back() -> None:
    meter = make_meter(100, "tokens")
    meter.lease = -7
    asked = meter.ask(1)
    assert asked is not None and asked.owed == 7
    assert meter.roll(NOON + 60) == [asked._replace(need=0, want=0)]  # the debt is booked on leaving
    late = meter.take(asked, Grant(8, 92))
    assert late == asked._replace(owed=-8, need=0, want=0)  # so this is booked twice
    assert meter.lease == 0


def test_a_closed_meter_takes_nothing() -> None:
    meter = make_meter(100)
    asked = meter.ask(5)
    assert asked is not None and meter.close() == []
    assert meter.take(asked, Grant(5, 95)) == ask(owed=-5)


def test_a_clock_that_jitters_stays_in_the_window_and_one_that_goes_back_leaves_it() -> None:
    meter = make_meter(100)
    lease(meter, num_waiting=3)
    assert meter.roll(NOON - 4.9) == [] and meter.lease == 3
    assert meter.roll(NOON - 5.1) == [ask(owed=-3)]
    assert meter.starts_at == NOON - 60 and meter.lease == 0


def test_headers_show_the_window_with_least_left() -> None:
    limits = KeyLimits(requests_per_minute=60, requests_per_day=1000, tokens_per_minute=500)
    account = Account("k", limits, NOON)
    for meter in account.meters:
        lease(meter, num_waiting=1)
    account.fill()
    account.requests.left -= 1
    assert account.render_headers(NOON + 0.5) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\nx-ratelimit-reset-requests: 1m0s\r\n"
        b"x-ratelimit-limit-tokens: 500\r\nx-ratelimit-remaining-tokens: 500\r\nx-ratelimit-reset-tokens: 1m0s\r\n"
    )
    _, per_day, tokens = account.meters
    per_day.left = 7
    per_day.lease = 3
    tokens.lease = -900  # overspent
    assert account.render_headers(NOON + 30) == (
        b"x-ratelimit-limit-requests: 1000\r\nx-ratelimit-remaining-requests: 10\r\n"
        b"x-ratelimit-reset-requests: 11h59m30s\r\n"
        b"x-ratelimit-limit-tokens: 500\r\nx-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 30s\r\n"
    )


def test_what_is_spent_from_the_purses_is_spent_from_every_meter() -> None:
    limits = KeyLimits(requests_per_minute=60, requests_per_day=1000, budget_per_day=1.0)
    account = Account("k", limits, NOON)
    assert not account.fill() and account.requests.left == account.budget.left == 0
    account.budget.left -= 5  # an answer that was asked for before
    for meter, granted in zip(account.meters, (3, 8, NANO), strict=True):
        asked = meter.ask(1)
        assert asked is not None
        meter.take(asked, Grant(granted, 10))
    assert account.fill()
    assert (account.requests.left, account.tokens.left > 10**18, account.budget.left) == (3, True, NANO - 5)
    account.requests.left -= 2
    account.meters[0].lease += 4  # granted meanwhile: there once the purse is filled again
    account.requests.left -= 1
    assert [meter.lease for meter in account.meters] == [4, 5, NANO - 5]
    assert account.requests.left == account.budget.left == 0
    assert account.fill() and account.requests.left == 4


def test_a_refusal_waits_for_the_last_window_that_is_used_up() -> None:
    account = Account("k", KeyLimits(requests_per_minute=2, budget_per_day=1.5), NOON)
    lease(account.meters[0], num_waiting=1, used=2)
    error = account.make_refusal(NOON + 10.2)
    assert (error.status, error.code, error.headers["retry-after"]) == (429, "rate_limit_exceeded", "50")
    assert error.message == "Limit reached: requests per minute, 2. Try again in 50s."
    lease(account.meters[1], num_waiting=1, used=2 * NANO)
    error = account.make_refusal(NOON + 10.2)
    assert (error.code, error.headers["retry-after"]) == ("insufficient_quota", str(12 * 3600 - 10))
    assert error.message == "Limit reached: budget per day, 1.5. Try again in 11h59m50s."
    assert error.headers["x-ratelimit-remaining-requests"] == "0"


def test_durations_read_as_in_openais_headers() -> None:
    shown = [format_duration(seconds) for seconds in (-1, 0, 0.2, 59.5, 360, 3605, 86_400)]
    assert shown == ["0s", "0s", "1s", "1m0s", "6m0s", "1h0m5s", "24h0m0s"]
