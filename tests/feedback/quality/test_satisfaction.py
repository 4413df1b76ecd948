"""Satisfaction of the randomly asked share, by arm and slice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from msgspec.structs import replace as change

from feedback.database import write_transaction
from feedback.inbox import consume
from feedback.quality.satisfaction import Opinion, load_opinions, measure_satisfaction
from tests.feedback.samples import make_choice, make_comparison, make_record, make_signal


def test_shares_are_of_those_who_said_something() -> None:
    law = [Opinion("stable", verdict, ("domain=law",)) for verdict in ("win", "win", "tie", "both_bad")]  # type: ignore[arg-type]
    thumbs = [Opinion("canary", "up"), Opinion("canary", "up"), Opinion("canary", "down")]
    canary, stable, in_law = measure_satisfaction([*law, *thumbs, replace(law[0], slices=())])
    assert (canary.arm, canary.slice, canary.thumbs_up.estimate) == ("canary", "all", pytest.approx(2 / 3))
    assert (canary.satisfied.num, canary.satisfied.low, canary.satisfied.high) == (0, 0.0, 1.0)
    assert (stable.num_wins, stable.num_ties, stable.num_both_bad) == (3, 1, 1)
    assert stable.satisfied.estimate == pytest.approx(0.8)
    assert (in_law.slice, in_law.satisfied.num, in_law.satisfied.estimate) == ("domain=law", 4, pytest.approx(0.75))


def test_only_what_was_asked_at_random_counts(trainer_database: sa.Engine) -> None:
    def say(number: int, asked: str, preferred: str) -> object:
        comparison = make_comparison(f"cmp-{number}", asked=asked)
        return make_record(number, make_choice(comparison, preferred))

    records = [
        say(0, "random", "first"), say(1, "random", "both_bad"), say(2, "explore", "first"), say(3, "random", "skip"),
        say(4, "random", "tie"), make_record(5, make_signal()), make_record(6, change(make_signal(), thumb=None)),
        make_record(7, change(make_signal(), policy="other")), make_record(8, make_signal(thumb="down", tags={"domain": "law"})),
    ]  # fmt: skip
    with write_transaction(trainer_database) as connection:
        consume(connection, records)  # type: ignore[arg-type]
        opinions = load_opinions(connection, "default")
    assert [each.verdict for each in opinions] == ["tie", "both_bad", "win", "down", "up"]
    assert opinions[0].slices == ("app=app-1", "domain=demo")
    assert opinions[3].slices == ("app=app-1", "domain=law")
    assert {each.slice for each in measure_satisfaction(opinions)} == {"all", "app=app-1", "domain=demo", "domain=law"}
