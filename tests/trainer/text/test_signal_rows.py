"""What thumbs, ratings, outcomes and edits come to as rows."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from feedback.events import Demonstration as DemonstrationEvent
from feedback.events import Outcome
from feedback.tool_calls import append_tool_calls
from tests.feedback.samples import make_signal
from trainer.learn.reward.outcomes import name_group
from trainer.text.signal_rows import is_edit, make_demonstration, make_edit, make_edit_pair, make_rated

ROW = {"event_id": "e-1", "prompt_key": "k", "split": "train", "row_id": 5}


def test_a_signal_is_one_row_for_each_thing_it_says() -> None:
    thumb, rating, outcome = make_rated(make_signal(), **ROW)  # type: ignore[arg-type]
    assert [(each.kind, each.value) for each in (thumb, rating, outcome)] == [
        ("thumb", 1.0), ("rating", 0.75), ("outcome", 1.0)
    ]  # fmt: skip
    assert (rating.answer.text, rating.answer.checkpoint) == ("Willemstad.", "c-000000-aaaaaaaaaaaa")
    assert (rating.prompt.key, rating.user, rating.app, rating.row_id) == ("k", "user-1", "app-1", 5)


@pytest.mark.parametrize(
    ("outcome", "value"),
    [
        (Outcome(success=False, score=0.9), 0.0),
        (Outcome(score=0.25), 0.25),
        (Outcome(score=17.0), None),  # in units that only the app knows
        (Outcome(score=float("nan")), None),
        (Outcome(name="quiz"), None),
    ],
)
def test_an_outcome_counts_as_success_or_as_a_share(outcome: Outcome, value: float | None) -> None:
    signal = replace(make_signal(), thumb=None, rating=None, outcome=outcome)
    assert [each.value for each in make_rated(signal, **ROW)] == ([] if value is None else [value])  # type: ignore[arg-type]


@pytest.mark.parametrize(("rating", "scale", "value"), [(1.0, 5, 0.0), (5.0, 5, 1.0), (3.0, None, None), (9.0, 3, 1.0)])
def test_a_rating_lies_between_nothing_and_one(rating: float, scale: int | None, value: float | None) -> None:
    signal = replace(make_signal(), thumb=None, outcome=None, rating=rating, scale=scale)
    assert [each.value for each in make_rated(signal, **ROW)] == ([] if value is None else [value])  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [{"messages": None}, {"answer": None}, {"messages": []}])
def test_a_signal_on_what_is_not_known_says_nothing(missing: dict[str, object]) -> None:
    signal = replace(make_signal(), **missing)
    assert make_rated(signal, **ROW) == []  # type: ignore[arg-type]
    assert not is_edit(signal)


def test_an_edit_is_an_ideal_answer_and_better_than_the_answer() -> None:
    signal = make_signal()
    demonstration = make_edit(signal, **ROW)  # type: ignore[arg-type]
    assert (demonstration.answer.text, demonstration.source) == ("Willemstad!", "edit")
    places = set()
    for number in range(20):
        pair = make_edit_pair(signal, **{**ROW, "event_id": f"e-{number}"}, weight=0.5)  # type: ignore[arg-type]
        chosen, rejected = (pair.first, pair.second) if pair.preferred == "first" else (pair.second, pair.first)
        assert (chosen.text, rejected.text, pair.asked, pair.weight) == ("Willemstad!", "Willemstad.", "edit", 0.5)
        places.add(pair.preferred)
    assert places == {"first", "second"}


CALLS = [{"type": "function", "function": {"name": "look_up", "arguments": "{}"}}]
RECORDED = make_signal(
    tags={"task": "quiz"}, tools=CALLS, chat_template_kwargs={"deep": True}, prompt_token_ids=[1, 5], token_ids=[7, 8],
    finish_reason="length", reasoning="Hm.", tool_calls=CALLS, answer=append_tool_calls("Let me see.", CALLS),
    edited_text="Willemstad.",
)  # fmt: skip


def test_what_was_recorded_of_an_answer_is_in_its_rows() -> None:
    rated = make_rated(RECORDED, **ROW)[0]  # type: ignore[arg-type]
    pair = make_edit_pair(RECORDED, **ROW, weight=1.0)  # type: ignore[arg-type]
    for prompt in (rated.prompt, pair.prompt, make_edit(RECORDED, **ROW).prompt):  # type: ignore[arg-type]
        assert (prompt.ids, prompt.tags, prompt.tools) == ((1, 5), {"task": "quiz"}, CALLS)
        assert prompt.template_kwargs == {"deep": True}
    for answer in (rated.answer, pair.first if pair.preferred == "second" else pair.second):
        assert (answer.text, answer.tool_calls, answer.ids) == ("Let me see.", CALLS, (7, 8))
        assert (answer.finish_reason, answer.reasoning, answer.is_finished) == ("length", "Hm.", False)


def test_outcomes_are_compared_within_the_slice_of_their_tags() -> None:
    outcomes = [each for each in make_rated(RECORDED, **ROW) if each.kind == "outcome"]  # type: ignore[arg-type]
    assert [name_group(each) for each in outcomes] == ["slice:app-1:task=quiz"]


@pytest.mark.parametrize(
    ("finish_reason", "is_finished"),
    [(None, True), ("stop", True), ("tool_calls", True), ("length", False), ("", False)],
)
def test_an_answer_ends_as_it_was_recorded_and_as_an_imported_one_where_that_is_not_known(
    finish_reason: str | None, is_finished: bool
) -> None:
    [rated, *_] = make_rated(make_signal(finish_reason=finish_reason), **ROW)  # type: ignore[arg-type]
    assert rated.answer.is_finished is is_finished


@pytest.mark.parametrize(
    ("edited", "is_finished"),
    [("The capital is on the southern", False), ("It is on the southern coast.", True), ("Willemstad.", True)],
)
def test_an_edit_of_a_cut_answer_is_whole_unless_it_breaks_off_there_too(edited: str, is_finished: bool) -> None:
    signal = make_signal(answer="Its capital is on the southern ", finish_reason="length", edited_text=edited)
    assert make_edit(signal, **ROW).answer.is_finished is is_finished  # type: ignore[arg-type]
    empty = make_signal(answer="", finish_reason="length", edited_text=edited)
    assert make_edit(empty, **ROW).answer.is_finished  # type: ignore[arg-type]


def test_the_text_beside_a_tool_call_said_again_is_no_edit() -> None:
    assert not is_edit(replace(RECORDED, edited_text="Let me see."))


@pytest.mark.parametrize("edited", [None, "Willemstad."])
def test_what_changes_nothing_is_no_edit(edited: str | None) -> None:
    signal = replace(make_signal(), edited_text=edited)
    assert not is_edit(signal)
    with pytest.raises(ValueError, match="no edit"):
        make_edit(signal, **ROW)  # type: ignore[arg-type]


def test_a_demonstration_keeps_what_its_prompt_had() -> None:
    event = DemonstrationEvent(
        id="dem_1", messages=[{"role": "user", "content": "Hi"}], answer="Ho.", channel="import", created_at=1.0,
        policy="p", tags={"task": "greet"}, tools=[{"type": "function"}], chat_template_kwargs={"deep": True},
    )  # fmt: skip
    row = make_demonstration(event, **ROW)  # type: ignore[arg-type]
    assert (row.source, row.policy, row.answer.text, row.answer.is_finished) == ("file", "p", "Ho.", True)
    assert (row.prompt.tools, row.prompt.template_kwargs, row.prompt.tags) == (
        event.tools, event.chat_template_kwargs, event.tags
    )  # fmt: skip
