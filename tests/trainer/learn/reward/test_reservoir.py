"""The sample of choices: bounded, uniform over history, the same for the same rows."""

import collections

import pytest
import torch

from trainer.learn.reward.reservoir import OLD_RATED, Key, Reservoir, Row
from trainer.math.choices import FIRST, RATED, TIE
from trainer.math.weights import WeightedRow


def make_row(number: int, *, part: str = "", hidden: bool = True, **fields) -> Row:
    values = {
        "key": Key(str(number), part), "user": "u", "kind": FIRST, "first": (float(number), 1.0), "second": (0.0, 1.0),
        "hidden": torch.full((2, 3), float(number)) if hidden else None, **fields,
    }  # fmt: skip
    return Row(**values)


def make_reservoir(capacity: int = 10, hidden_capacity: int = 4, seed: int = 0) -> Reservoir:
    return Reservoir(2, 3, capacity, hidden_capacity, seed)


def check_hidden(reservoir: Reservoir) -> None:
    """Every row's hidden states are its own."""
    places = reservoir.places_with_hidden()
    assert len(places) == reservoir.num_hidden
    for place, states in zip(places.tolist(), reservoir.hidden_of(places), strict=True):
        assert states.tolist() == [[float(reservoir.event_ids[place])] * 3] * 2


def test_rows_are_kept_up_to_the_capacity_and_hidden_states_up_to_theirs() -> None:
    reservoir = make_reservoir()
    reservoir.add(make_row(i) for i in range(200))
    assert (len(reservoir), reservoir.num_seen) == (10, 200)
    assert 1 <= reservoir.num_hidden <= 4
    assert len(set(reservoir.event_ids)) == 10
    check_hidden(reservoir)


def test_the_sample_is_uniform_over_history() -> None:
    kept: collections.Counter[int] = collections.Counter()
    for seed in range(300):
        reservoir = make_reservoir(seed=seed)
        reservoir.add(make_row(i, hidden=False) for i in range(40))
        kept.update(int(each) // 10 for each in reservoir.event_ids)
    assert all(count == pytest.approx(750, abs=90) for count in kept.values())


def test_a_row_that_is_there_gets_the_new_weight_and_hidden_states_it_lacked() -> None:
    reservoir = make_reservoir()
    reservoir.add([make_row(1, hidden=False, weight=1.0, margin=0.5)])
    assert reservoir.wants_hidden(Key("1")) and reservoir.wants_hidden(Key("2"))
    reservoir.add([make_row(1, weight=0.25, margin=0.5)])
    assert not reservoir.wants_hidden(Key("1"))
    choices = reservoir.choices()
    assert (len(choices), choices.weights.tolist(), choices.margins.tolist()) == (1, [0.25], [0.5])


def test_a_thumb_and_an_outcome_of_one_signal_are_two_rows_which_an_erasure_takes_together() -> None:
    reservoir = make_reservoir()
    rated = {"kind": RATED, "second": None}
    both = [make_row(1, part="thumb", value=1.0, **rated), make_row(1, part="outcome", value=0.0, **rated)]
    reservoir.add([*both, make_row(1), make_row(2)])
    reservoir.add(both)
    assert reservoir.event_ids == ["1", "1", "1", "2"]
    assert reservoir.numbers[:2, 2].tolist() == [1, 0]
    assert reservoir.find([Key("1", "outcome"), Key("1", "rating"), Key("1")]).tolist() == [1, 2]
    other = make_reservoir()
    other.restore(*reservoir.state(), now=0.0)
    other.drop(["1"])
    assert other.event_ids == ["2"]


def test_rows_are_weighed_by_their_person_app_and_age_as_known_last() -> None:
    reservoir = make_reservoir()
    reservoir.add([make_row(1, user="a", app="x", at=100.0), make_row(2, user="b", app="y", at=70.0, weight=0.5)])
    reservoir.add([make_row(1, user="a", app="z", at=90.0)])
    other = make_reservoir()
    other.restore(*reservoir.state(), now=0.0)
    assert other.describe(now=110.0) == [WeightedRow("a", "z", 20.0, 1.0), WeightedRow("b", "y", 40.0, 0.5)]
    assert other.choices(torch.tensor([3.0, 4.0])).weights.tolist() == [3, 4]


def test_a_state_of_the_release_before_has_rows_of_their_own_weight_that_age_from_now_on() -> None:
    reservoir = make_reservoir()
    rated = {"kind": RATED, "second": None}
    reservoir.add([make_row(1, weight=32.0), make_row(2, weight=0.25, **rated), make_row(3, weight=0.5, **rated)])
    tensors, _ = reservoir.state()
    users = ["a", "b", "slice:app:task=sql"]
    old = {"ids": ["1", "2", "3"], "users": users, "num_seen": 3, "num_hidden_seen": 3}
    other = make_reservoir()
    other.restore(tensors, old, now=50.0)
    assert other.describe(now=60.0) == [
        WeightedRow("a", "", 10.0, 1.0), WeightedRow("b", "", 10.0, 0.25), WeightedRow("", "", 10.0, 0.5)
    ]  # fmt: skip
    assert [row.group for row in other.said] == users
    assert [row.key.part for row in other.said] == ["", OLD_RATED, OLD_RATED]


def test_choices_are_differences_of_features() -> None:
    reservoir = make_reservoir()
    reservoir.add([make_row(3, kind=TIE), make_row(4, kind=RATED, second=None, value=1.0)])
    choices = reservoir.choices()
    assert choices.features.tolist() == [[3, 0], [4, 1]]
    assert choices.kinds.tolist() == [TIE, RATED]


def test_ratings_are_compared_with_what_their_person_usually_gives() -> None:
    reservoir = make_reservoir()
    given = [("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 0.0)]
    reservoir.add(
        make_row(i, group=user, kind=RATED, second=None, value=value) for i, (user, value) in enumerate(given)
    )
    # all: .75; a: (2 + 1.5) / 4 = .875; b: (1 + 1.5) / 4 = .625
    assert reservoir.choices().targets.tolist() == pytest.approx([0.625, 0.625, 0.875, 0.0], abs=1e-6)


def test_dropped_rows_are_gone_and_the_others_keep_their_states() -> None:
    reservoir = make_reservoir(hidden_capacity=10)
    reservoir.add(make_row(i) for i in range(8))
    reservoir.drop(["2", "5", "unknown"])
    assert reservoir.event_ids == ["0", "1", "3", "4", "6", "7"]
    assert Key("2") not in reservoir and Key("3") in reservoir
    check_hidden(reservoir)
    reservoir.add(make_row(i) for i in range(8, 40))
    assert len(reservoir) == 10
    check_hidden(reservoir)


def test_a_restored_sample_goes_on_as_the_first_would() -> None:
    reservoir, other = make_reservoir(), make_reservoir()
    reservoir.add(make_row(i) for i in range(30))
    other.restore(*reservoir.state(), now=0.0)
    for each in (reservoir, other):
        each.add(make_row(i) for i in range(30, 90))
    assert other.said == reservoir.said
    assert torch.equal(other.choices().features, reservoir.choices().features)
    check_hidden(other)


def test_a_state_of_other_features_is_refused() -> None:
    reservoir = make_reservoir()
    reservoir.add([make_row(1)])
    with pytest.raises(ValueError, match="other features"):
        Reservoir(4, 3, 10, 4, 0).restore(*reservoir.state(), now=0.0)
