from __future__ import annotations

import pytest
import sqlalchemy as sa

from feedback.choices import NewChoice, choices, comparisons, outbox, record_choices, store_comparison
from feedback.database import write_transaction
from feedback.errors import ConflictingChoice, ExpiredComparison
from feedback.outbox import load_rows
from feedback.quality.agreement import load_judgements
from feedback.retention import forget_comparisons
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_comparison


@pytest.fixture
def shown(database: sa.Engine) -> sa.Engine:
    """Three comparisons that run out at 100, 200 and 300; the first was answered."""
    with write_transaction(database) as connection:
        for number in (1, 2, 3):
            store_comparison(connection, make_comparison(id=f"cmp-{number}", expires_at=100.0 * number, created_at=1.0))
        record_choice(connection, "cmp-1", "first", None, False, "api", 50.0)
    return database


def forget(database: sa.Engine, before: float, num: int = 10) -> int:
    with write_transaction(database) as connection:
        return forget_comparisons(connection, before, num)


def list_remembered(database: sa.Engine) -> list[str]:
    with database.connect() as connection:
        rows = connection.execute(sa.select(comparisons.c.id, comparisons.c.body).order_by(comparisons.c.id))
        return [row.id for row in rows if row.body]


def test_the_oldest_forget_what_they_showed_and_the_others_do_not(shown: sa.Engine) -> None:
    assert forget(shown, 250.0) == 2
    assert list_remembered(shown) == ["cmp-3"]
    assert forget(shown, 250.0) == 0


def test_so_many_at_a_time_the_oldest_first(shown: sa.Engine) -> None:
    assert forget(shown, 1000.0, num=1) == 1
    assert list_remembered(shown) == ["cmp-2", "cmp-3"]


def test_what_is_on_its_way_to_the_log_stays_whole(shown: sa.Engine) -> None:
    forget(shown, 1000.0)
    with shown.connect() as connection:
        [row] = load_rows(connection, outbox, 10)
    assert b'"messages"' in row.record.value


def test_a_choice_made_again_is_answered_though_nobody_knows_what_was_shown(shown: sa.Engine) -> None:
    forget(shown, 1000.0)
    with write_transaction(shown) as connection:
        again, other = (
            record_choices(
                connection,
                [
                    NewChoice(
                        comparison_id="cmp-1",
                        preferred=preferred,
                        strength=None,
                        harmful=False,
                        channel="api",
                        at=9000.0,
                    )
                ],
            )[0]
            for preferred in ("first", "second")
        )
    assert not isinstance(again, Exception) and (again.status, again.body) == ("replayed", b"")
    assert isinstance(other, ConflictingChoice)


def test_a_first_choice_of_a_forgotten_comparison_comes_too_late(shown: sa.Engine) -> None:
    forget(shown, 1000.0)
    with pytest.raises(ExpiredComparison), write_transaction(shown) as connection:
        record_choice(connection, "cmp-2", "first", None, False, "api", 9000.0)


def test_who_chose_what_stays_and_agreement_reads_on(shown: sa.Engine) -> None:
    forget(shown, 1000.0)
    with shown.connect() as connection:
        assert connection.execute(sa.select(choices.c.preferred)).scalars().all() == ["first"]
        assert load_judgements(connection, "default", 10) == []


def test_the_index_finds_them(shown: sa.Engine) -> None:
    with shown.connect() as connection:
        if shown.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
            explain = "EXPLAIN"
        else:
            explain = "EXPLAIN QUERY PLAN"
        query = "SELECT id FROM comparisons WHERE expires_at < 5 AND length(body) > 0 ORDER BY expires_at LIMIT 5"
        plan = " ".join(str(row) for row in connection.exec_driver_sql(f"{explain} {query}"))
    assert "comparisons_remembered" in plan
