import random

import pytest

from tests.trainer.fakes import make_choice
from trainer.text.pairs import Pair, choose_round_pairs, count_replays, draw_sample, explain_use, make_pair


def pair_of(number: int) -> Pair:
    return make_pair(make_choice(number), event_id=f"e{number}", prompt_key="p", split="train")


def test_a_pair_keeps_the_order_in_which_answers_were_shown():
    pair = make_pair(make_choice(7, preferred="second", user="u"), event_id="e7", prompt_key="k", split="train")
    assert (pair.first, pair.second, pair.preferred) == ("first answer 7", "second answer 7", "second")
    assert (pair.event_id, pair.user, pair.prompt_key, pair.weight) == ("e7", "u", "k", 1.0)
    assert pair.messages == [{"role": "user", "content": "question 7"}]


def test_a_skip_makes_no_pair():
    with pytest.raises(ValueError, match="skip"):
        make_pair(make_choice(1, preferred="skip"), event_id="e1", prompt_key="k", split="train")


@pytest.mark.parametrize(("num_new", "share", "expected"), [(64, 0.5, 64), (60, 0.25, 20), (64, 0.0, 0), (90, 0.1, 10)])
def test_replay_makes_up_its_share_of_the_whole(num_new, share, expected):
    assert count_replays(num_new, share) == expected


def test_a_sample_has_no_repeats_and_keeps_the_order():
    sample = draw_sample(range(100), 10, random.Random(1))
    assert len(set(sample)) == 10
    assert sample == sorted(sample)
    assert draw_sample([1, 2], 5, random.Random(1)) == [1, 2]


def test_a_round_takes_the_newest_pairs_and_as_many_old_ones():
    new, old = [pair_of(n) for n in range(10, 16)], [pair_of(n) for n in range(10)]
    pairs = choose_round_pairs(new, old, max_new=4, replay_share=0.5, rng=random.Random(3))
    assert [p.event_id for p in pairs[:4]] == ["e12", "e13", "e14", "e15"]
    assert len(pairs) == 8
    assert {p.event_id for p in pairs[4:]} <= {p.event_id for p in old}


def test_the_same_seed_draws_the_same_pairs():
    new, old = [pair_of(1)], [pair_of(n) for n in range(2, 30)]
    drawn = [choose_round_pairs(new, old, max_new=9, replay_share=0.8, rng=random.Random(5)) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_every_choice_is_trained_on_waits_or_is_set_aside_with_a_reason():
    assert explain_use("first", "train", 1) == "trained"
    assert explain_use("tie", "train", 1) == "trained"
    assert explain_use("second", "train", 0) == "waiting"
    assert explain_use("skip", "train", 0) == "skip"
    assert explain_use("first", "heldout_user", 0) == "heldout_user"
    assert explain_use("first", "heldout_prompt", 0) == "heldout_prompt"
