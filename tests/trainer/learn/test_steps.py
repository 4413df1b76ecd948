"""Steps follow from seed and ids, leave nothing out, and put like lengths together."""

from trainer.learn.steps import plan_steps

IDS = [f"e{i}" for i in range(25)]
LENGTHS = [10 + 7 * i % 25 for i in range(25)]


def plan(seed: int = 0, epochs: int = 1, num_steps: int = 0) -> list[list[int]]:
    return plan_steps(IDS, LENGTHS, batch_size=8, epochs=epochs, seed=seed, num_steps=num_steps)


def test_every_row_is_in_one_step_of_each_epoch_and_steps_are_of_like_size() -> None:
    steps = plan(epochs=2)
    assert sorted(len(step) for step in steps) == [6, 6, 6, 6, 6, 6, 7, 7]
    for epoch in (steps[:4], steps[4:]):
        assert sorted(i for step in epoch for i in step) == list(range(25))
    assert steps[:4] != steps[4:]


def test_the_same_seed_gives_the_same_steps_and_another_one_others() -> None:
    assert plan(seed=3) == plan(seed=3) != plan(seed=4)


def test_where_a_row_stands_in_the_list_does_not_matter() -> None:
    turned = plan_steps(IDS[::-1], LENGTHS[::-1], batch_size=8, epochs=1, seed=0)
    assert [{24 - i for i in step} for step in turned] == [set(step) for step in plan()]


def test_rows_of_like_length_share_a_step() -> None:
    spans = [max(LENGTHS[i] for i in step) - min(LENGTHS[i] for i in step) for step in plan()]
    assert max(spans) < 10


def test_a_number_of_steps_takes_as_many_epochs_as_it_needs() -> None:
    steps = plan(num_steps=6)
    assert steps[:4] == plan()
    assert len(steps) == 6


def test_nothing_gives_no_steps() -> None:
    assert plan_steps([], [], batch_size=8, epochs=3, seed=0) == []
