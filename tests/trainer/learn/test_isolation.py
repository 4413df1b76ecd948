"""A batch that fails: the row to blame is found, the others are run once. How each part uses it is in the part's own tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy.exc import OperationalError

from trainer.learn.isolation import run_isolated


def test_only_the_row_that_fails_alone_is_rejected_and_the_rest_runs_once() -> None:
    done: list[int] = []
    rejected: list[int] = []

    def run(batch: Sequence[int]) -> None:
        if {3, 11} & set(batch):
            raise ValueError("bad")
        done.extend(batch)

    run_isolated(list(range(16)), run, lambda row, error: rejected.append(row))
    assert rejected == [3, 11]
    assert done == [row for row in range(16) if row not in rejected]


def test_a_database_that_is_gone_is_no_rows_fault() -> None:
    def run(batch: Sequence[int]) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    with pytest.raises(OperationalError):
        run_isolated([1, 2], run, lambda row, error: pytest.fail("rejected"))
