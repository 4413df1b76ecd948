"""Rows as tensors: places, positions and who sees whom."""

import pytest

from trainer.text.batches import make_batch, pad_length, plan_batches


def test_answers_share_their_prompt_and_do_not_see_each_other() -> None:
    batch = make_batch([((5, 6), [(7, 8), (9,)]), ((5,), [(7,)])], pad_id=0)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9], [5, 7, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.int()[0, 0].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert batch.attention_mask.any(-1).all()  # a token that sees nothing would be no number
    places = [batch.answer_rows, batch.starts, batch.ends, batch.prompt_last]
    assert [p.tolist() for p in places] == [[0, 0, 1], [2, 4, 1], [4, 5, 2], [1, 1, 0]]


def test_separate_rows_need_no_mask_and_number_answers_alike() -> None:
    batch = make_batch([((5, 6), [(7, 8), (9,)])], pad_id=2, share_prompt=False)
    assert batch.attention_mask is None
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 6, 9, 2]]
    assert (batch.answer_rows.tolist(), batch.starts.tolist(), batch.ends.tolist()) == ([0, 1], [2, 2], [4, 3])


def test_a_pad_that_is_the_turn_end_stays_out_of_the_answers() -> None:
    batch = make_batch([((5,), [(7, 2)]), ((5, 6, 5), [(7, 2)])], pad_id=2)
    assert batch.ids.tolist() == [[5, 7, 2, 2, 2], [5, 6, 5, 7, 2]]
    assert batch.ends.tolist() == [3, 5]


@pytest.mark.parametrize("item", [((), [(1,)]), ((1,), []), ((1,), [(1,), ()])])
def test_an_item_needs_prompt_and_answers(item: tuple[tuple[int, ...], list[tuple[int, ...]]]) -> None:
    with pytest.raises(ValueError):
        make_batch([item], pad_id=0)


def test_batches_hold_rows_of_like_length_up_to_the_budget() -> None:
    assert plan_batches([9, 2, 3, 2, 30, 10], 20) == [[1, 3, 2], [0, 5], [4]]
    assert plan_batches([], 20) == []


def test_several_processes_get_as_many_batches_as_far_as_there_are_rows() -> None:
    lengths = [5, 5, 5, 5, 9, 1]
    plan = plan_batches(lengths, 1000, 4)
    assert len(plan) == 4 and sorted(i for batch in plan for i in batch) == list(range(6))
    assert plan_batches([3, 4], 1000, 4) == [[0], [1]]
    assert plan_batches(lengths, 10, 1) == plan_batches(lengths, 10)
    assert len(plan_batches([9] * 7, 9, 2)) == 7  # a row each: nothing can be halved


def test_rows_are_padded_to_few_lengths_by_an_eighth_at_most() -> None:
    assert [pad_length(n) for n in (1, 7, 15, 17, 33, 100, 129, 200, 1024, 1025)] == [
        1, 7, 15, 18, 36, 104, 144, 208, 1024, 1152,
    ]  # fmt: skip
    assert all(n <= pad_length(n) <= n * 9 / 8 for n in range(1, 5000))
    assert len({pad_length(n) for n in range(1, 4097)}) == 15 + 8 * 8 + 1  # the shapes that kernels are made for


def test_padding_stays_within_the_context_and_a_batch_within_its_budget() -> None:
    items = [((1,) * 60, [(2,) * 70])]
    assert make_batch(items, pad_id=0).ids.shape == (1, 144)
    assert make_batch(items, pad_id=0, max_length=135).ids.shape == (1, 135)
    assert make_batch(items, pad_id=0, max_length=100).ids.shape == (1, 130)  # what is there is never cut
    assert plan_batches([130, 130], 280) == [[0], [1]] and plan_batches([130, 130], 288) == [[0, 1]]
