"""Preference datasets of others, in each of TRL's forms, become choices under ids that follow from the row."""

from __future__ import annotations

from typing import Any

import pytest

from feedback.errors import ImportExportError
from feedback.events import Choice
from feedback.import_export import read_event
from feedback.import_export.foreign import Origin, read_preference

ORIGIN = Origin("tutor", "import", 5000.0)
ASKED = {"role": "user", "content": "What color is the sky?"}
BLUE, GREEN = "It is blue.", "It is green."
PLAIN = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "messages", "chosen", "rejected"),
    [
        (PLAIN, [{"role": "user", "content": "The sky is"}], " blue.", " green."),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            [{"role": "user", "content": "The sky is"}],
            " blue.",
            " green.",
        ),
        ({"prompt": [ASKED], "chosen": [said(BLUE)], "rejected": [said(GREEN)]}, [ASKED], BLUE, GREEN),
        ({"chosen": [ASKED, said(BLUE)], "rejected": [ASKED, said(GREEN)]}, [ASKED], BLUE, GREEN),
        (
            {"prompt": ASKED["content"], "chosen": [ASKED, said(BLUE)], "rejected": [ASKED, said(GREEN)]},
            [ASKED],
            BLUE,
            GREEN,
        ),
        ({"prompt": [ASKED], "chosen": [ASKED, said(BLUE)], "rejected": [ASKED, said(GREEN)]}, [ASKED], BLUE, GREEN),
        (
            {"prompt": "Hi", "chosen": [said("a")], "rejected": [said("b")]},
            [{"role": "user", "content": "Hi"}],
            "a",
            "b",
        ),
        ({"prompt": [ASKED], "chosen": BLUE, "rejected": GREEN}, [ASKED], BLUE, GREEN),
        (
            {"prompt": [{**ASKED, "name": None}], "chosen": [said("a")], "rejected": [said("b")], "score_chosen": 9.5},
            [ASKED],
            "a",
            "b",
        ),
    ],
)
def test_every_form_is_read(row: dict[str, Any], messages: Any, chosen: str, rejected: str) -> None:
    assert read_preference(row) == (messages, chosen, rejected)
    data = read_event(row, ORIGIN).data
    assert isinstance(data, Choice)
    texts = {"first": data.comparison.first.text, "second": data.comparison.second.text}
    assert texts.pop(data.preferred) == chosen
    assert list(texts.values()) == [rejected]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "both be"),
        ({"prompt": "x", "chosen": "a"}, "both be"),
        ({"prompt": "x", "chosen": "a", "rejected": ["b"]}, "both be"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "the same"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty"),
        ({"chosen": "a", "rejected": "b"}, "empty"),
        ({"chosen": [said("a")], "rejected": [said("b")]}, "empty"),
        ({"prompt": [ASKED], "chosen": ["a"], "rejected": ["b"]}, "role"),
        ({"prompt": [ASKED], "chosen": [said("a"), ASKED], "rejected": [said("b")]}, "exactly one assistant"),
        ({"prompt": [ASKED], "chosen": [ASKED], "rejected": [said("b")]}, "exactly one assistant"),
        ({"prompt": [ASKED], "chosen": [], "rejected": [said("b")]}, "exactly one assistant"),
        (
            {"prompt": [ASKED], "chosen": [{"role": "assistant", "content": None}], "rejected": [said("b")]},
            "exactly one",
        ),
    ],
)
def test_other_rows_are_refused_with_the_reason(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ImportExportError, match=problem):
        read_event(row, ORIGIN)


def test_ids_follow_from_the_row_and_times_do_not_matter() -> None:
    one, again = read_event(PLAIN, ORIGIN), read_event(PLAIN, Origin("tutor", "import", 9000.0))
    assert one.id == again.id and one.key == again.key
    others = [
        read_event({**PLAIN, "chosen": " red."}, ORIGIN),
        read_event({**PLAIN, "chosen": PLAIN["rejected"], "rejected": PLAIN["chosen"]}, ORIGIN),
        read_event(PLAIN, Origin("default", "import", 5000.0)),
    ]
    assert len({one.id, *(other.id for other in others)}) == 4


def test_an_imported_choice_says_where_it_comes_from() -> None:
    event = read_event(PLAIN, ORIGIN)
    assert isinstance(event.data, Choice)
    comparison = event.data.comparison
    assert (event.source, event.data.channel, comparison.policy, comparison.app) == ("import",) * 2 + (
        "tutor",
        "import",
    )
    assert (comparison.user, comparison.first.checkpoint, event.data.chosen_at) == ("", "", 5000.0)


def test_the_better_answer_does_not_always_come_first() -> None:
    rows = [{**PLAIN, "prompt": f"{number} The sky is"} for number in range(400)]
    first = [event.data.preferred for row in rows if isinstance((event := read_event(row, ORIGIN)).data, Choice)]
    assert 150 < first.count("first") < 250  # 200 +- 5 standard deviations
