"""Which rows a round takes."""

from __future__ import annotations

import random

from trainer.run.rows.plan import count_replays, draw_rows

NEW, OLD = [f"n{i}" for i in range(10)], [f"o{i}" for i in range(10)]


def draw(max_new: int = 100, share: float = 0.5, *, is_restart: bool = False, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    return draw_rows(NEW, OLD, max_new=max_new, replay_share=share, is_restart=is_restart, rng=rng)


def test_half_of_a_round_is_new_and_half_is_replayed() -> None:
    drawn = draw(max_new=6)
    assert drawn.new == NEW[-6:]
    assert len(drawn.replayed) == 6 and drawn.replayed == sorted(drawn.replayed)
    assert drawn.num_left == 4


def test_a_restart_takes_everything_whatever_the_cap_on_new_rows() -> None:
    drawn = draw(max_new=2, share=0.25, is_restart=True)
    assert (drawn.new, drawn.replayed, drawn.num_left) == (NEW, OLD, 0)


def test_replays_make_up_their_share_of_the_whole() -> None:
    assert count_replays(300, 0.25) == 100
    assert count_replays(300, 0.0) == 0


def test_the_same_seed_draws_the_same_and_another_draws_others() -> None:
    assert draw(max_new=5, seed=1) == draw(max_new=5, seed=1)
    assert draw(max_new=5, seed=1).replayed != draw(max_new=5, seed=2).replayed
