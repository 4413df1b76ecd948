"""Drift is told in sentences, and only where it is clear and large enough to matter."""

from tests.trainer.tiny import make_prompt
from trainer.judge.answers import HarmScreen
from trainer.judge.drift import Served, describe_drift, measure_live
from trainer.math.intervals import Estimate
from trainer.text.pairs import Answer

JUDGED = {"policy_unfinished": 0.02, "policy_tokens": 30.0, "reward_accuracy": 0.8}


def serve(number: int, num_unfinished: int) -> list[Served]:
    return [
        Served(
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
    sentences = describe_drift({"policy_unfinished": 0.02}, live)
    assert sentences == ["unfinished answers: 20% in traffic, 2% when it was judged (200 prompts)"]


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
