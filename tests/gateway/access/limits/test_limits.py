"""Limits over one and two gateways, on SQLite and on PostgreSQL; what happens when one dies or the clock is wrong."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from feedback.database import Writer, create_tables, open_database, write_transaction
from feedback.errors import DatabaseError
from gateway.access.keys import Identity
from gateway.access.limits.allowance import KeyLimits
from gateway.access.limits.leases import DAY_S, NANO
from gateway.access.limits.limiter import Limits
from gateway.access.limits.usage import forget_usage, usage
from gateway.errors import ApiError
from gateway.sections.serving import GatewaySection
from tests.postgres import run_database

NOON = 1_800_000_000.0 // DAY_S * DAY_S + 12 * 3600


class World:
    """One database, several gateways, one clock."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.now = NOON
        self.num_commits = 0
        self.database = open_database(url)
        create_tables(self.database, usage.metadata)
        with self.database.begin() as conn:
            conn.execute(sa.delete(usage))
        self._stack = stack
        stack.callback(self.database.dispose)

    def start_gateway(self, **prices: float) -> Limits:
        """A gateway with a connection and a writer of its own."""
        database = open_database(self.url)
        sa.event.listen(database, "commit", self._count_commit)
        writer = Writer(database)
        self._stack.callback(database.dispose)
        self._stack.callback(writer.close)
        return Limits(writer, GatewaySection(**prices), clock=lambda: self.now)  # type: ignore[arg-type]

    def _count_commit(self, _: sa.Connection) -> None:
        self.num_commits += 1

    def used(self, kind: str = "requests", length_s: int = 60) -> dict[int, int]:
        """What the table says was used, by window."""
        query = sa.select(usage.c.starts_at, usage.c.used).where(usage.c.kind == kind, usage.c.length_s == length_s)
        with self.database.connect() as conn:
            return {row.starts_at: row.used for row in conn.execute(query)}


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with run_database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    url = f"sqlite:{tmp_path / 'gateway.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres")
    async with AsyncExitStack() as stack:
        yield World(url, stack)


def make_identity(key_id: str = "k", **limits: Any) -> Identity:
    return Identity(key_id, "app", frozenset({"app"}), limits=KeyLimits(**limits))


async def is_admitted(limits: Limits, identity: Identity, now: float) -> bool:
    """What the serving path does."""
    answer = limits.try_admit(identity, now)
    if answer is None:
        try:
            await limits.admit(identity, now)
        except ApiError as error:
            assert error.status == 429
            return False
        return True
    return answer


async def count_admitted(limits: Limits, identity: Identity, now: float, num: int) -> int:
    """So many requests at once."""
    return sum(await asyncio.gather(*(is_admitted(limits, identity, now) for _ in range(num))))


async def tick(world: World, *gateways: Limits, seconds: float = 0.25) -> None:
    """Let the loops run for some time."""
    for _ in range(round(seconds / 0.25)):
        world.now += 0.25
        for gateway in gateways:
            await gateway.tick(world.now)


async def test_a_key_without_limits_costs_nothing(world: World) -> None:
    limits = world.start_gateway()
    free = Identity("k", "app", frozenset({"app"}))
    assert limits.try_admit(free, world.now) is True
    assert limits.header_lines(free, world.now) == b""
    limits.settle(free, 5, 5)
    await limits.admit(free, world.now)
    await limits.tick(world.now)
    assert world.used() == {}
    with pytest.raises(ValueError):
        limits.refusal(free, world.now)


async def test_requests_pass_up_to_the_limit_and_then_get_429(world: World) -> None:
    limits, identity = world.start_gateway(), make_identity(requests_per_minute=3)
    assert limits.try_admit(identity, world.now) is None  # nothing is leased yet
    assert await count_admitted(limits, identity, world.now, 2) == 2
    assert limits.header_lines(identity, world.now + 20) == (
        b"x-ratelimit-limit-requests: 3\r\nx-ratelimit-remaining-requests: 1\r\nx-ratelimit-reset-requests: 40s\r\n"
    )
    assert await count_admitted(limits, identity, world.now, 2) == 1
    assert limits.try_admit(identity, world.now) is False
    with pytest.raises(ApiError) as caught:
        await limits.admit(identity, world.now)
    refusal = limits.refusal(identity, world.now)
    assert (caught.value.status, caught.value.message) == (refusal.status, refusal.message)
    assert refusal.headers == {
        "retry-after": "60",
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    assert b'"type":"rate_limit_error"' in refusal.body() and b'"code":"rate_limit_exceeded"' in refusal.body()
    assert limits.num_refused == 3
    assert world.used() == {int(NOON): 3}


@pytest.mark.parametrize("first", [250, 450, 500])
async def test_two_gateways_share_one_limit(world: World, first: int) -> None:
    one, two = world.start_gateway(), world.start_gateway()
    identity = make_identity(requests_per_minute=100, requests_per_day=10_000)
    passed = await asyncio.gather(
        count_admitted(one, identity, world.now, first), count_admitted(two, identity, world.now, 500 - first)
    )
    assert sum(passed) == 100
    assert world.used() == {int(NOON): 100}


async def test_a_small_limit_is_not_refused_to_one_gateway_for_what_the_other_might_use(world: World) -> None:
    gateways = world.start_gateway(), world.start_gateway()
    identity = make_identity(requests_per_minute=10)
    passed = 0
    for index in range(14):
        passed += await is_admitted(gateways[index % 2], identity, world.now)
        await tick(world, *gateways)
    assert passed == 10


async def test_no_mixture_of_two_gateways_exceeds_a_limit_or_wastes_it(world: World) -> None:
    rng = random.Random(7)
    one, two = world.start_gateway(), world.start_gateway()
    identity = make_identity(requests_per_minute=640, requests_per_day=1500)
    passed = {}
    for minute in range(4):
        passed[minute] = 0
        for _ in range(30):
            for gateway in (one, two):
                passed[minute] += await count_admitted(gateway, identity, world.now, rng.choice((0, 1, 5, 40)))
            await tick(world, one, two, seconds=rng.choice((0.25, 0.5)))
        world.now = NOON + 60 * (minute + 1)
    assert all(num <= 640 for num in passed.values())
    assert sum(passed.values()) <= 1500
    await one.close()
    await two.close()
    assert world.used() == {int(NOON) + 60 * minute: num for minute, num in passed.items()}
    assert world.used(length_s=DAY_S) == {int(NOON) - 12 * 3600: sum(passed.values())}
    assert sum(passed.values()) == 1500


async def test_a_busy_key_does_not_wait(world: World) -> None:
    limits, identity = world.start_gateway(), make_identity(requests_per_minute=60_000)
    await is_admitted(limits, identity, world.now)
    for _ in range(20):
        await tick(world, limits)
        for _ in range(50):
            assert limits.try_admit(identity, world.now) is True
    assert limits.num_waited == 1


async def test_a_busy_key_does_not_wait_at_the_windows_border(world: World) -> None:
    limits, identity = world.start_gateway(), make_identity(requests_per_minute=60_000)
    world.now = NOON + 57
    await is_admitted(limits, identity, world.now)
    while world.now < NOON + 63:
        await tick(world, limits)
        assert limits.try_admit(identity, world.now) is True
    await limits.close()
    assert world.used() == {int(NOON): 12, int(NOON) + 60: 13}


async def test_a_gateway_that_dies_takes_its_lease_along_and_no_more(world: World) -> None:
    one, two = world.start_gateway(), world.start_gateway()
    identity = make_identity(requests_per_minute=640)
    assert await count_admitted(one, identity, world.now, 1) == 1
    held = 10 - 1  # a 64th of the limit was leased; the gateway is never heard of again
    assert await count_admitted(two, identity, world.now, 700) == 640 - 1 - held


async def test_a_gateway_that_stops_hands_its_lease_back(world: World) -> None:
    one, two = world.start_gateway(), world.start_gateway()
    identity = make_identity(requests_per_minute=640)
    assert await count_admitted(one, identity, world.now, 1) == 1
    await one.close()
    assert world.used() == {int(NOON): 1}
    assert await count_admitted(two, identity, world.now, 700) == 639


async def test_a_limit_that_nothing_is_spent_of_makes_no_request_wait(world: World) -> None:
    limits = world.start_gateway()
    identity = make_identity(requests_per_minute=64_000, budget_per_minute=1.0)  # tokens that have no price
    assert await is_admitted(limits, identity, world.now)
    for _ in range(40):  # more ticks than it takes to hand back a lease that nobody uses
        await tick(world, limits)
        assert limits.try_admit(identity, world.now) is True
        limits.settle(identity, 0, 0)


async def test_what_an_idle_gateway_held_can_be_used_elsewhere_within_seconds(world: World) -> None:
    one, two = world.start_gateway(), world.start_gateway()
    identity = make_identity(requests_per_minute=640)
    assert await is_admitted(one, identity, world.now)
    assert await count_admitted(two, identity, world.now, 700) == 630
    assert two.try_admit(identity, world.now) is False
    await tick(world, one, two, seconds=4)
    assert two.try_admit(identity, world.now) is None  # that nothing is left is no longer believed
    assert await count_admitted(two, identity, world.now, 50) == 9


async def test_a_new_window_begins_anew(world: World) -> None:
    limits, identity = world.start_gateway(), make_identity(requests_per_minute=5, requests_per_day=8)
    assert await count_admitted(limits, identity, NOON + 59.9, 9) == 5
    assert limits.refusal(identity, NOON + 59.9).headers["retry-after"] == "1"
    assert await count_admitted(limits, identity, NOON + 60, 9) == 3  # the day's
    assert limits.refusal(identity, NOON + 60).headers["retry-after"] == str(12 * 3600 - 60)
    assert await count_admitted(limits, identity, NOON + 12 * 3600, 9) == 5


async def test_a_clock_that_goes_back_finds_what_was_used(world: World) -> None:
    limits, identity = world.start_gateway(), make_identity(requests_per_minute=10)
    assert await count_admitted(limits, identity, NOON + 1, 7) == 7
    assert await count_admitted(limits, identity, NOON + 61, 4) == 4
    assert await count_admitted(limits, identity, NOON + 59.9, 4) == 4  # jitter: in the window that had begun
    assert await count_admitted(limits, identity, NOON + 1, 9) == 3
    assert await count_admitted(limits, identity, NOON + 61, 9) == 2
    assert world.used() == {int(NOON): 10, int(NOON) + 60: 10}


async def test_tokens_are_counted_afterwards_and_may_overshoot_by_what_was_in_flight(world: World) -> None:
    one, two = world.start_gateway(), world.start_gateway()
    identity = make_identity(tokens_per_minute=1000)
    assert await count_admitted(one, identity, world.now, 3) == 3
    for _ in range(3):
        one.settle(identity, 300, 200)
    assert await count_admitted(one, identity, world.now, 1) == 0
    assert one.refusal(identity, world.now).code == "rate_limit_exceeded"
    assert b"x-ratelimit-remaining-tokens: 0\r\n" in one.header_lines(identity, world.now)
    assert world.used("tokens") == {int(NOON): 1500}
    assert not await is_admitted(two, identity, world.now)
    assert await is_admitted(two, identity, NOON + 60)


async def test_who_waits_for_a_lease_while_the_limits_change_passes_by_the_new_ones(world: World) -> None:
    limits = world.start_gateway()
    old, new = make_identity(requests_per_minute=1000), make_identity(requests_per_minute=2000)
    waiting = asyncio.create_task(is_admitted(limits, old, world.now))
    await asyncio.sleep(0)
    assert await asyncio.gather(waiting, *(is_admitted(limits, new, world.now) for _ in range(5))) == [True] * 6
    await limits.close()
    assert (world.used(), world.num_commits < 12) == ({int(world.now): 6}, True)


async def test_a_budget_is_spent_at_the_settings_prices(world: World) -> None:
    limits = world.start_gateway(price_per_million_prompt_tokens=0.15, price_per_million_completion_tokens=0.6)
    identity = make_identity(budget_per_day=0.001)
    assert await is_admitted(limits, identity, world.now)
    limits.settle(identity, 1000, 1000)  # 0.00015 and 0.0006
    await tick(world, limits)
    assert await is_admitted(limits, identity, world.now)
    limits.settle(identity, 1001, 333)  # 0.00015015 and 0.0001998
    assert not await is_admitted(limits, identity, world.now)
    refusal = limits.refusal(identity, world.now)
    assert refusal.code == "insufficient_quota" and "x-ratelimit-limit-requests" not in refusal.headers
    await limits.close()
    assert world.used("budget", DAY_S) == {int(NOON) - 12 * 3600: NANO * 75 // 100_000 + 150_150 + 199_800}


async def test_an_answer_that_ends_in_the_next_minute_counts_there(world: World) -> None:
    limits, identity = world.start_gateway(), make_identity(tokens_per_minute=640)
    assert await is_admitted(limits, identity, world.now)
    world.now = NOON + 61
    limits.settle(identity, 100, 40)
    await limits.close()
    assert world.used("tokens") == {int(NOON): 0, int(NOON) + 60: 140}


async def test_changed_limits_apply_to_what_was_used_before(world: World) -> None:
    limits = world.start_gateway()
    assert await count_admitted(limits, make_identity(requests_per_minute=5), world.now, 9) == 5
    assert await count_admitted(limits, make_identity(requests_per_minute=8), world.now, 9) == 3
    assert await count_admitted(limits, make_identity(requests_per_minute=6), world.now, 9) == 0
    assert await count_admitted(limits, make_identity(tokens_per_minute=6), world.now, 9) == 9
    assert await count_admitted(limits, make_identity(requests_per_minute=0), NOON + 60, 9) == 0


async def test_many_keys_are_served_by_few_transactions(world: World) -> None:
    limits = world.start_gateway()
    keys = [make_identity(f"k{index}", requests_per_minute=6400) for index in range(450)]
    assert all(await asyncio.gather(*(is_admitted(limits, key, world.now) for key in keys)))
    assert world.num_commits == 3  # of at most 200 keys
    await limits.close()
    assert world.num_commits == 4


async def test_old_windows_are_forgotten(world: World) -> None:
    limits, identity = world.start_gateway(), make_identity(requests_per_minute=5, requests_per_day=50)
    for now in (NOON, NOON + 60):
        assert await is_admitted(limits, identity, now)
    with world.database.begin() as conn:
        assert forget_usage(conn, NOON + 3600) == 0
        assert forget_usage(conn, NOON + 3601) == 1
        assert forget_usage(conn, NOON + 9 * DAY_S) == 2
    assert world.used() == world.used(length_s=DAY_S) == {}
    assert await is_admitted(limits, identity, NOON + 9 * DAY_S)
    await limits.tick(NOON + 18 * DAY_S)  # the loop sweeps by itself
    assert world.used() == world.used(length_s=DAY_S) == {}


class FailingWriter:
    """A writer whose database is away while `error` is set, or never answers while `is_silent`."""

    def __init__(self, database: sa.Engine) -> None:
        self.database = database
        self.error: Exception | None = None
        self.is_silent = False

    async def arun(self, fn: Callable[[sa.Connection], Any]) -> Any:
        if self.is_silent:
            await asyncio.sleep(30)
        if self.error is not None:
            raise self.error
        with write_transaction(self.database) as conn:
            return fn(conn)


def start_failing_gateway(world: World, *, max_wait_s: float = 4.0) -> tuple[Limits, FailingWriter]:
    writer: Any = FailingWriter(world.database)
    return Limits(writer, GatewaySection(), clock=lambda: world.now, max_wait_s=max_wait_s), writer


async def test_without_a_database_leases_are_spent_and_then_the_key_gets_503(world: World) -> None:
    limits, writer = start_failing_gateway(world)
    identity = make_identity(requests_per_minute=128, tokens_per_minute=6400)
    assert await is_admitted(limits, identity, world.now)
    writer.error = DatabaseError("away")
    assert limits.try_admit(identity, world.now) is True  # a 64th was leased
    with pytest.raises(ApiError) as caught:
        await limits.admit(identity, world.now)
    assert (caught.value.status, caught.value.headers["retry-after"]) == (503, "1")
    limits.settle(identity, 600, 400)
    await tick(world, limits)
    assert limits.num_failures == 2
    writer.error = None
    assert await is_admitted(limits, identity, world.now)
    await limits.close()
    assert list(world.used().values()) == [3] and list(world.used("tokens").values()) == [1000]


async def test_what_could_not_be_handed_back_is_not_tried_again_but_a_debt_is(world: World) -> None:
    limits, writer = start_failing_gateway(world)
    identity = make_identity(requests_per_minute=640, tokens_per_minute=6400)
    assert await is_admitted(limits, identity, world.now)
    limits.settle(identity, 600, 400)
    other = make_identity(requests_per_minute=64, tokens_per_minute=640)  # so that the old windows are given up
    writer.error = DatabaseError("perhaps committed, perhaps not")
    assert limits.try_admit(other, world.now) is None
    await limits.tick(world.now)
    writer.error = None
    await limits.tick(world.now)
    assert list(world.used().values()) == [10] and list(world.used("tokens").values()) == [1000]


async def test_a_database_that_never_answers_costs_a_request_its_patience(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    limits, writer = start_failing_gateway(world, max_wait_s=0.05)
    writer.is_silent = True
    with pytest.raises(ApiError) as caught:
        await limits.admit(make_identity(requests_per_minute=10), world.now, {"request_id": "req_1"})
    assert caught.value.status == 503 and limits.num_failures == 1
    assert [record.__dict__["request_id"] for record in caplog.records if record.name == "gateway.limits"] == ["req_1"]


async def test_a_request_that_gives_up_waiting_does_not_spend(world: World) -> None:
    limits, identity = world.start_gateway(), make_identity(requests_per_minute=10)
    leaving = asyncio.create_task(limits.admit(identity, world.now))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await count_admitted(limits, identity, world.now, 20) == 10


async def test_the_loop_survives_failures_and_stops_when_cancelled(world: World) -> None:
    limits, writer = start_failing_gateway(world)
    limits.settle(make_identity(tokens_per_minute=100), 20, 20)
    writer.error = DatabaseError("away")
    loop = asyncio.create_task(limits.run())
    async with asyncio.timeout(5):
        while limits.num_failures < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        writer.error = None
        while not world.used("tokens"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
    await limits.close()
    assert world.used("tokens") == {int(NOON): 40}
