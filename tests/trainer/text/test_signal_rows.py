"""What thumbs, ratings, outcomes and edits come to as rows."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from feedback.events import Demonstration as DemonstrationEvent
from feedback.events import Outcome
from tests.feedback.samples import make_signal
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
