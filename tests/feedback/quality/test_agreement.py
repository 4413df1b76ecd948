"""Whether two people who see the same two answers prefer the same one."""

from pathlib import Path

import pytest

from feedback.choices import store_comparison
from feedback.database import create_tables, metadata, open_database, write_transaction
from feedback.quality.agreement import Judgement, load_judgements, measure_agreement
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_candidate, make_comparison


def test_of_each_question_the_first_two_users_count_once_each() -> None:
    judgements = [
        Judgement("ann", "sky", "a"), Judgement("ann", "sky", "b"), Judgement("bob", "sky", "a"),  # ann's first counts
        Judgement("cid", "sky", "b"),  # a third one adds nothing
        Judgement("ann", "egg", "a"), Judgement("bob", "egg", "b"),
        Judgement("ann", "sea", "a"), Judgement("", "sea", "b"), Judgement("", "sea", "a"),  # nobody knows who that is
        Judgement("ann", "sun", "a"), Judgement("bob", "sun", "a"),
    ]  # fmt: skip
    found = measure_agreement(judgements)
    assert (found.num, found.estimate) == (3, pytest.approx(2 / 3))
    assert (found.low, found.high) == pytest.approx((0.20766, 0.93851), abs=1e-5)  # Wilson, 2 of 3


def test_the_same_two_answers_are_one_question_in_either_order(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:{tmp_path / 'choices.db'}")
    create_tables(engine, metadata)
    lima, cusco, quito = (make_candidate(text, "stable") for text in ("Lima", "Cusco", "Quito"))
    rows = [
        ("ann", lima, cusco, "first"),
        ("bob", cusco, lima, "second"),
        ("cid", lima, quito, "first"),
        ("dan", quito, lima, "tie"),
    ]
    with write_transaction(engine) as conn:
        for n, (user, first, second, preferred) in enumerate(rows):
            store_comparison(conn, make_comparison(f"cmp-{n}", user=user, first=first, second=second))
            record_choice(conn, f"cmp-{n}", preferred, None, False, "t", 1001.0 + n)  # type: ignore[arg-type]
        found = load_judgements(conn, "default", 10)
    assert [each.user for each in found] == ["ann", "bob", "cid"]  # a tie prefers nothing
    assert found[0].question == found[1].question != found[2].question
    assert found[0].chosen == found[1].chosen == found[2].chosen
    assert measure_agreement(found).num == 1
