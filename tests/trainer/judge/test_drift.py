"""Drift is told in sentences, and only where it is clear and large enough to matter."""

from typing import Any

import pytest

from tests.trainer.tiny import make_prompt
from trainer.judge.answers import HarmScreen
from trainer.judge.drift import Served, describe_drift, measure_live, read_served
from trainer.math.intervals import Estimate
from trainer.text.messages import UnusableRow
from trainer.text.pairs import Answer, Prompt

JUDGED = {"policy_unfinished[kind=heldout]": 0.02, "policy_tokens[kind=heldout]": 30.0, "reward_accuracy": 0.8}
CALLS = [{"type": "function", "function": {"name": "look_up", "arguments": '{"at": "the sea"}'}}]


def serve(number: int, num_unfinished: int) -> list[Served]:
    return [
        read_served(
            make_prompt(f"question {i}", key=str(i)),
            Answer(text="It is a fine day.", ids=(1, 2, 3, 4), finish_reason="length" if i < num_unfinished else "stop"),
        )
        for i in range(number)
    ]  # fmt: skip


def test_live_answers_have_the_figures_that_judging_has() -> None:
    live = measure_live(serve(100, 20), HarmScreen([]))
    assert live["unfinished"].mean == 0.2
    assert live["tokens"].mean == 0.2 * 4 + 0.8 * 3
    assert live["short"].mean == 0
    assert measure_live(serve(29, 0), HarmScreen([])) == {}


def test_a_clear_rise_is_told_with_both_numbers() -> None:
    live = measure_live(serve(200, 40), HarmScreen([]))
    sentences = describe_drift(JUDGED, {"unfinished": live["unfinished"]})
    assert sentences == ["unfinished answers: 20% in traffic, 2% when it was judged (200 prompts)"]


def test_what_frozen_sets_alone_were_judged_by_is_held_against_nobodys_prompts() -> None:
    live = measure_live(serve(200, 40), HarmScreen([]))
    assert describe_drift({"policy_unfinished": 0.02, "policy_unfinished[kind=fact]": 0.02}, live) == []
    both = {"policy_unfinished": 0.02, "policy_unfinished[kind=heldout]": 0.2}
    assert describe_drift(both, live) == []


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]]
)
def test_a_prompt_that_is_no_text_is_none_to_measure_by(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(UnusableRow):
        read_served(Prompt(messages=messages), Answer(text="It is a fine day."))


def test_an_answer_that_calls_a_tool_is_none_of_few_words() -> None:
    served = [read_served(make_prompt(key=str(i)), Answer(text="", tool_calls=CALLS)) for i in range(30)]
    assert measure_live(served, HarmScreen([]))["short"].mean == 0


def test_noise_small_changes_and_what_was_not_judged_are_not_told() -> None:
    assert describe_drift({}, measure_live(serve(200, 40), HarmScreen([]))) == []
    assert describe_drift(JUDGED, {"unfinished": Estimate(0.04, 0.001, 99, 100)}) == []  # clear but small
    assert describe_drift(JUDGED, {"unfinished": Estimate(0.2, 0.2, 99, 100)}) == []  # large but not clear
    assert describe_drift(JUDGED, {"tokens": Estimate(40.0, 0.5, 99, 100)}) == []


def test_longer_answers_and_a_reward_model_that_no_longer_foresees_are_told() -> None:
    live = {"tokens": Estimate(60.0, 1.0, 99, 100), "reward_accuracy": Estimate(0.6, 0.03, 299, 300)}
    assert describe_drift(JUDGED, live) == [
        "tokens an answer: 60 in traffic, 30 when it was judged (100 prompts)",
        "choices that the reward model foresees: 60% in traffic, 80% when it was judged (300 prompts)",
    ]
