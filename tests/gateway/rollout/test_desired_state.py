"""What may be deleted, by hand-made tables."""

from dataclasses import replace

from gateway.rollout.desired_state import find_deletable
from gateway.tables.checkpoints import CheckpointRow


def row(number: int, status: str, parent: int | None = None) -> CheckpointRow:
    above = None if parent is None else f"c-{parent}"
    return CheckpointRow(f"c-{number}", number, above, "lora", f"d{number}", "", "", status, 0.0, 0.0)


ROWS = [
    row(0, "retired"),
    row(1, "retired", 0),
    row(2, "superseded", 1),
    row(3, "stable", 1),
    row(4, "waiting", 3),
    row(5, "draining", 3),
    row(6, "deleted", 3),
]


def test_stable_its_parent_the_newest_and_whatever_is_not_done_with_are_kept() -> None:
    assert find_deletable(ROWS, ROWS[3], frozenset(), keep=1) == {"c-0", "c-2"}
    assert find_deletable(ROWS, ROWS[3], frozenset(), keep=5) == {"c-0"}  # numbers 2 to 6
    assert find_deletable(ROWS, ROWS[3], frozenset(), keep=7) == frozenset()
    assert find_deletable(ROWS, None, frozenset(), keep=1) == {"c-0", "c-1", "c-2"}


def test_what_a_gateway_loads_or_answers_by_is_kept() -> None:
    assert find_deletable(ROWS, ROWS[3], frozenset({"c-0"}), keep=1) == {"c-2"}


def test_whoever_serves_anothers_files_keeps_them() -> None:
    copied = [replace(each, path=f"s3://bucket/checkpoints/{each.id}") for each in ROWS]
    copied[3] = replace(copied[3], kind="aa", path="s3://bucket/checkpoints/c-0")
    assert find_deletable(copied, copied[3], frozenset(), keep=1) == {"c-2"}


def test_keeping_none_means_keeping_all() -> None:
    assert find_deletable(ROWS, ROWS[3], frozenset(), keep=0) == frozenset()
