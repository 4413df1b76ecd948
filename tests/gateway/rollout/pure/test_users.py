"""What a user's duels come to, worked out by hand, and what of it stays when the user goes on."""

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World

from gateway.rollout import inputs
from gateway.rollout.desired_state import read_rules
from gateway.rollout.pure.users import Duel, Voter, sum_up


def duel(asked: float, outcome: int, chosen: float | None = -1.0, **flags: bool) -> Duel:
    return Duel("u", asked, asked + 1 if chosen == -1.0 else chosen, outcome, **flags)


def test_everything_is_counted_and_only_the_first_cap_duels_score() -> None:
    own = [duel(0, -1), duel(1, 1), duel(2, 1), duel(3, 0), duel(4, 0, both_bad=True), duel(5, 0, None)]
    assert sum_up(own, cap=2, window_s=10) == Voter(
        "u", first_asked_at=0, complete_at=2, score=0, votes=5, wins=2, losses=1, both_bad=1, last_chosen_at=5,
        first=own[0],
    )  # fmt: skip
    assert sum_up(own, cap=2, window_s=10).ties == 1


def test_who_has_not_decided_enough_is_complete_when_the_window_closes() -> None:
    late = duel(1, 1, 11.0)
    voter = sum_up([duel(0, 0, None), late, duel(2, -1, 10.0)], cap=2, window_s=10)
    assert (voter.complete_at, voter.score, voter.votes) == (10, -1, 2)  # at 10 s sharp still counts, at 11 no more
    assert voter.first == late


def test_who_has_decided_nothing_has_no_vote() -> None:
    assert sum_up([duel(3, 0, None)], cap=2, window_s=10) == Voter("u", 3, 13, 0, 0, 0, 0, 0, 0.0, None)


def test_what_is_decided_first_counts_whatever_was_asked_first() -> None:
    assert sum_up([duel(0, 1, 9.0), duel(1, -1, 3.0)], cap=1, window_s=10).score == -1


own_duels = st.lists(
    st.builds(duel, st.floats(0, 100), st.sampled_from([-1, 0, 1])), min_size=1, max_size=12, unique_by=lambda d: d.asked_at
)  # fmt: skip


@given(own_duels, own_duels, st.integers(1, 6))
def test_what_comes_after_a_user_is_complete_changes_no_score(own: list[Duel], more: list[Duel], cap: int) -> None:
    before = sum_up(own, cap=cap, window_s=20)
    later = [duel(one.asked_at + before.complete_at + 1, one.outcome) for one in more]
    after = sum_up(own + later, cap=cap, window_s=20)
    assert (after.score, after.complete_at, after.first_asked_at) == (
        before.score,
        before.complete_at,
        before.first_asked_at,
    )


async def test_one_users_duels_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(World(tmp_path)) as world:
        await world.started()
        await world.duel(range(20), 3)
        row = await world.row()
        held: list[int] = []

        def watch(own: list[Duel], *, cap: int, window_s: float) -> Voter:
            held.append(len(own))
            return sum_up(own, cap=cap, window_s=window_s)

        monkeypatch.setattr(inputs, "sum_up", watch)
        rules = read_rules(row)
        voters = (await world.writer.aread(lambda conn: inputs.read_inputs(conn, row, rules, world.time))).voters
    assert held == [3] * 20 == [voter.votes for voter in voters]
    assert len({voter.user for voter in voters}) == 20
