"""Files of messages and ideal answers become demonstrations under ids that follow from the row."""

from __future__ import annotations

from typing import Any

import pytest

from feedback.errors import ImportExportError
from feedback.events import Choice, Demonstration
from feedback.import_export import read_event
from feedback.import_export.foreign import Origin

ORIGIN = Origin("tutor", "import", 5000.0)
ROW: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "answer": "Ho."}


def test_a_row_becomes_a_demonstration_and_the_same_one_again() -> None:
    event = read_event({**ROW, "tags": {"task": "greet"}, "score": 9}, ORIGIN)
    assert isinstance(event.data, Demonstration)
    assert (event.data.messages, event.data.answer, event.data.tags) == (ROW["messages"], "Ho.", {"task": "greet"})
    assert (event.data.channel, event.data.policy, event.data.app, event.source) == (
        "import",
        "tutor",
        "import",
        "import",
    )
    assert event.id == event.data.id == read_event(ROW, Origin("tutor", "import", 9000.0)).id
    assert read_event({**ROW, "answer": "Hm."}, ORIGIN).id != event.id


def test_a_choice_with_such_columns_stays_a_choice() -> None:
    row = {**ROW, "prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    assert isinstance(read_event(row, ORIGIN).data, Choice)


@pytest.mark.parametrize(
    "change",
    [
        {"answer": ""},
        {"answer": None},
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [{}]},
        {"tags": 7},
        {"tools": "x"},
    ],
)
def test_rows_of_other_forms_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ImportExportError):
        read_event({**ROW, **change}, ORIGIN)
