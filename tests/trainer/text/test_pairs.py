import msgspec
import pytest

from tests.trainer.fakes import make_choice
from trainer.text.pairs import explain_use, make_pair


def test_a_pair_keeps_the_order_in_which_answers_were_shown():
    pair = make_pair(make_choice(7, preferred="second", user="u"), event_id="e7", prompt_key="k", split="train")
    assert (pair.first.text, pair.second.text, pair.preferred) == ("first answer 7", "second answer 7", "second")
    assert (pair.event_id, pair.user, pair.prompt.key, pair.weight) == ("e7", "u", "k", 1.0)
    assert pair.prompt.messages == [{"role": "user", "content": "question 7"}]


def test_a_pair_keeps_the_tokens_that_the_engine_sampled():
    choice = make_choice(7)
    first = msgspec.structs.replace(choice.comparison.first, token_ids=[5, 6, 2], finish_reason="stop", top_p=0.8)
    comparison = msgspec.structs.replace(choice.comparison, first=first, prompt_token_ids=[1, 9])
    recorded = msgspec.structs.replace(choice, comparison=comparison)
    pair = make_pair(recorded, event_id="e7", prompt_key="k", split="train")
    assert (pair.prompt.ids, pair.first.ids, pair.second.ids) == ((1, 9), (5, 6, 2), None)
    assert (pair.first.top_p, pair.second.top_p) == (0.8, None)


@pytest.mark.parametrize(
    ("reason", "is_finished"), [("stop", True), ("tool_calls", True), ("length", False), ("", False)]
)
def test_a_turn_end_belongs_to_answers_that_the_policy_ended(reason, is_finished):
    choice = make_choice(7)
    first = msgspec.structs.replace(choice.comparison.first, finish_reason=reason)
    comparison = msgspec.structs.replace(choice.comparison, first=first)
    pair = make_pair(
        msgspec.structs.replace(choice, comparison=comparison), event_id="e7", prompt_key="k", split="train"
    )
    assert pair.first.is_finished is is_finished


def test_a_skip_makes_no_pair():
    with pytest.raises(ValueError, match="skip"):
        make_pair(make_choice(1, preferred="skip"), event_id="e1", prompt_key="k", split="train")


def test_every_choice_is_trained_on_waits_or_is_set_aside_with_a_reason():
    assert explain_use("first", "train", 1) == "trained"
    assert explain_use("tie", "train", 1) == "trained"
    assert explain_use("second", "train", 0) == "waiting"
    assert explain_use("skip", "train", 0) == "skip"
    assert explain_use("first", "heldout", 0) == "heldout"
    assert explain_use("first", "auditor", 0) == "auditor"
    assert explain_use("first", "train", 0, is_quarantined=True) == "quarantined"
