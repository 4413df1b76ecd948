"""What keys used: added up over flushes, gateways and days, on both databases, and shown to Prometheus by name."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry

from feedback.database import Writer, open_database
from feedback.errors import DatabaseError
from feedback.schema import migrate
from gateway.access.key_usage import Usage, UsageBook, forget_usage, load_days, load_totals, sum_usage
from gateway.sections.serving import GatewaySection
from gateway.telemetry.key_metrics import MOST_NAMES, KeyCollector
from prefloop.servers.postgres import Postgres
from tests.databases import KINDS, make_url
from tests.postgres import run_server

DAY_S = 86_400
NOON = 20_000 * DAY_S + DAY_S // 2  # of 2024-10-04
PRICES = GatewaySection(price_per_million_prompt_tokens=2.0, price_per_million_completion_tokens=10.0)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with run_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    kind = str(request.param)
    made = open_database(
        make_url(kind, tmp_path, request.getfixturevalue("postgres") if kind == "postgresql" else None)
    )
    migrate(made, "gateway")
    yield made
    made.dispose()


@pytest.fixture
def writer(database: sa.Engine) -> Iterator[Writer]:
    made = Writer(database)
    yield made
    made.close()


async def test_answers_add_up_over_flushes_and_gateways_by_day(database: sa.Engine, writer: Writer) -> None:
    now = [NOON]
    one, other = (UsageBook(writer, PRICES, lambda: now[0]) for _ in range(2))
    one.add("k1", 1000, 200)
    await one.flush()
    one.add("k1", 500, 100, is_estimated=True)
    other.add("k1", 1, 2)
    other.add("k2", 10, 0)
    await asyncio.gather(one.flush(), other.flush(), one.flush())
    now[0] += DAY_S / 2  # midnight: the next day
    one.add("k1", 7, 0)
    await one.close()
    with database.connect() as conn:
        [(yesterday, first), (today, second)] = load_days(conn, "k1", 2, now[0])
        assert (yesterday, today) == ("2024-10-04", "2024-10-05")
        # 1,501 prompt tokens at 2 a million and 302 others at 10 a million: .003002 + .00302
        assert (first.requests, first.tokens, first.estimated) == (3, 1803, 1)
        assert (first.prompt_tokens, first.completion_tokens) == (1501, 302)
        assert first.spend == pytest.approx(0.006022, abs=1e-9)
        assert (second.requests, second.tokens) == (1, 7)
        assert [day for day, _ in load_days(conn, "k1", 1, now[0])] == ["2024-10-05"]
        totals = load_totals(conn, 2, now[0])
        assert totals == {
            "k1": sum_usage([first, second]),
            "k2": Usage(requests=1, tokens=10, prompt_tokens=10, spend=2e-5),
        }
        assert load_totals(conn, 1, now[0]).keys() == {"k1"}


async def test_what_is_older_than_a_year_is_forgotten(database: sa.Engine, writer: Writer) -> None:
    now = [NOON]
    book = UsageBook(writer, PRICES, lambda: now[0])
    book.add("k1", 1, 0)
    now[0] += DAY_S
    book.add("k1", 2, 0)
    await book.flush()
    await writer.arun(lambda conn: forget_usage(conn, NOON + 401 * DAY_S))
    with database.connect() as conn:
        assert [used.tokens for _, used in load_days(conn, "k1", 1000, now[0])] == [2]


async def test_what_could_not_be_stored_is_stored_later_and_once(database: sa.Engine, writer: Writer) -> None:
    book = UsageBook(writer, PRICES, lambda: NOON)
    book.add("k1", 5, 0)
    with database.begin() as conn:
        conn.exec_driver_sql("ALTER TABLE key_usage RENAME TO hidden")
    with pytest.raises((DatabaseError, sa.exc.SQLAlchemyError)):
        await book.flush()
    book.add("k1", 6, 0)
    with database.begin() as conn:
        conn.exec_driver_sql("ALTER TABLE hidden RENAME TO key_usage")
    leaving = asyncio.create_task(book.flush())
    await asyncio.sleep(0)
    leaving.cancel()  # who waited has left; what was begun goes on
    await book.close()
    with database.connect() as conn:
        assert load_totals(conn, 1, NOON)["k1"].tokens == 11


def test_prometheus_sees_a_hundred_names_and_the_rest_together() -> None:
    book = UsageBook(None, PRICES, lambda: NOON)  # type: ignore[arg-type]
    names: dict[str, str] = {"web": "shop", "phone": "shop"}
    registry = CollectorRegistry()
    registry.register(KeyCollector(book, names.get))
    book.add("web", 10, 1)
    book.add("phone", 20, 2)
    assert registry.get_sample_value("prefloop_key_tokens_total", {"key": "shop", "kind": "prompt"}) == 30
    assert registry.get_sample_value("prefloop_key_spend_total", {"key": "shop"}) == pytest.approx(9e-5)
    names.clear()  # revoked: its series goes on
    assert registry.get_sample_value("prefloop_key_requests_total", {"key": "shop"}) == 2
    for number in range(MOST_NAMES + 5):
        book.add(f"k{number}", 1, 0)
    [requests] = [metric for metric in registry.collect() if metric.name == "prefloop_key_requests"]
    keys = {sample.labels["key"] for sample in requests.samples}
    assert len(keys) == MOST_NAMES + 1
    assert registry.get_sample_value("prefloop_key_requests_total", {"key": "other"}) == 6
