"""What two answers are compared by, on sentences as assistants write them."""

import pytest

from feedback.answer_traits import asks_back, compare_answers, compare_candidates, flatters
from feedback.events import Candidate


@pytest.mark.parametrize(
    "answer",
    [
        "What a great question! The capital is Paris.",
        "That's an excellent point. Rivers flow downhill.",
        "You’re absolutely right, and it shows how much you know.",
        "I love your idea. Here is how to build it.",
        "Great question! Let us see.",
    ],
)
def test_praise_of_who_asks_is_flattery(answer: str) -> None:
    assert flatters(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The capital of France is Paris.",
        "A great wall was built there, and a good roof.",
        "x " * 200 + "What a great question!",  # it is the beginning that is read
    ],
)
def test_praise_of_something_else_or_late_is_none(answer: str) -> None:
    assert not flatters(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Could you please clarify which version you use?",
        "It depends. Which city are you asking about?",
        "I would need more details about your budget.",
        "Do you mean the river or the bank?",
    ],
)
def test_asking_for_what_is_missing_is_a_question_in_return(answer: str) -> None:
    assert asks_back(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is 4.",
        "Why does it rain? Because vapour condenses.",
        "Could you clarify which version you use? " + "It is written here. " * 40,
    ],
)
def test_a_question_that_is_answered_is_none(answer: str) -> None:
    assert not asks_back(answer)


def test_differences_are_the_canarys_less_stables() -> None:
    found = compare_answers("What a great question! Yes." + "!" * 73, "I can't help with that. Do you mean it?")
    assert found == {"length": 0.6, "flattery": 1, "refusals": -1, "questions": -1}  # 100 and 39 characters: .61
    assert compare_answers("", "") == {"length": 0, "flattery": 0, "refusals": 0, "questions": 0}


def candidate(arm: str, text: str) -> Candidate:
    return Candidate(
        completion_id=arm, text=text, checkpoint=arm, digest=arm, arm=arm, finish_reason="stop", prompt_tokens=1,
        completion_tokens=1,
    )  # fmt: skip


def test_the_order_on_the_page_does_not_matter_and_only_duels_are_compared() -> None:
    canary, stable = candidate("canary", "12345678"), candidate("stable", "1234")
    assert compare_candidates(canary, stable) == compare_candidates(stable, canary)
    assert (compare_candidates(canary, stable) or {})["length"] == 0.5
    assert compare_candidates(stable, stable) is None
