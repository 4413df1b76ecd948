"""What is new to a reward model: choices by their marks in the inbox, ratings and edits by the last signal that was read for each.

Nothing that a frozen set asks is taught: checkpoints are judged by that. Reads, and marks nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import sqlalchemy as sa

from trainer.judge.frozen import digest_prompt
from trainer.run.reward.states import Marks
from trainer.run.rows import rows, signal_queries
from trainer.run.rows.plan import count_replays, draw_sample
from trainer.sections.reward import RewardSection
from trainer.text.pairs import Pair, Rated
from trainer.text.rejected import Reject

SIGNALS_A_CHOICE = 4  # an update looks at so many for each choice that it takes
BULK_CHUNK = 500  # rows in memory at a time in a pass over many

Row = TypeVar("Row", Pair, Rated)


@dataclass(frozen=True)
class Lesson:
    """What one update learns from, or a part of a pass. marks: where reading signals goes on after it.

    frozen: choices that a frozen set asks. They teach nothing, and are new no more.
    """

    marks: Marks
    new: list[Pair] = field(default_factory=list)
    frozen: list[Pair] = field(default_factory=list)
    replayed: list[Pair] = field(default_factory=list)
    edits: list[Pair] = field(default_factory=list)
    rated: list[Rated] = field(default_factory=list)

    @property
    def rows(self) -> list[Pair | Rated]:
        """All that is new."""
        return [*self.new, *self.edits, *self.rated]


class Lessons:
    """Reads what is new of one policy. edit_weight: of an edit beside a choice; 0: edits teach nothing.

    list_frozen_prompts: as digest_prompt names them.
    """

    def __init__(
        self,
        database: sa.Engine,
        policy: str,
        settings: RewardSection,
        reject: Reject,
        *,
        edit_weight: float,
        list_frozen_prompts: Callable[[], frozenset[str]],
    ) -> None:
        self._database, self._policy, self._settings, self._reject = database, policy, settings, reject
        self._edit_weight, self._list_frozen_prompts = edit_weight, list_frozen_prompts

    def count_new(self, marks: Marks) -> tuple[int, int]:
        """How many choices are new, and how many signals, which may say nothing to learn from."""
        with self._database.connect() as connection:
            num_said = signal_queries.count_said(connection, self._policy, self._find_start(marks))
            return rows.count_unused(connection, self._policy), num_said

    def _find_start(self, marks: Marks) -> int:
        """The last signal of which everything was read."""
        return min(marks.rated_until, marks.edited_until) if self._edit_weight else marks.rated_until

    def load_next(self, marks: Marks, rng: random.Random) -> Lesson:
        """At most an update's worth of what is new, with what is replayed beside it."""
        section, digests = self._settings, self._list_frozen_prompts()
        with self._database.connect() as connection:
            loaded = rows.load_unused(connection, self._policy, section.update_every_preferences, self._reject)
            new, frozen = split_frozen(loaded, digests)
            replayable = rows.list_replayable(connection, self._policy, section.max_replays) if new else []
            drawn = draw_sample(replayable, count_replays(len(new), section.replay_share), rng)
            replayed, _ = split_frozen(rows.load_ids(connection, self._policy, drawn, self._reject), digests)
            num_signals = SIGNALS_A_CHOICE * section.update_every_preferences
            said = self._load_said(connection, marks, num_signals, digests)
        return replace(said, new=new, frozen=frozen, replayed=replayed)

    def read_choices(self, marks: Marks) -> Iterator[Lesson]:
        """All choices that are new by now, so many at a time. marks: those that the lessons have."""
        digests = self._list_frozen_prompts()
        with self._database.connect() as connection:
            ids = rows.list_unused(connection, self._policy)
        for start in range(0, len(ids), BULK_CHUNK):
            with self._database.connect() as connection:
                some = ids[start : start + BULK_CHUNK]
                loaded = rows.load_ids(connection, self._policy, some, self._reject)
            yield Lesson(marks, *split_frozen(loaded, digests))

    def read_said(self, marks: Marks) -> Iterator[Lesson]:
        """Ratings and edits of all signals after the marks that are there by now."""
        digests = self._list_frozen_prompts()
        with self._database.connect() as connection:
            last = signal_queries.find_last_placed(connection)
        while self._find_start(marks) < last:
            with self._database.connect() as connection:
                said = self._load_said(connection, marks, BULK_CHUNK, digests)
            marks = said.marks
            yield said

    def _load_said(self, connection: sa.Connection, marks: Marks, limit: int, digests: frozenset[str]) -> Lesson:
        """Ratings and edits of so many signals after the marks."""
        policy, reject, weight = self._policy, self._reject, self._edit_weight
        start, until = marks.rated_until, signal_queries.find_end(connection, policy, marks.rated_until, limit)
        rated, _ = split_frozen(signal_queries.load_rated(connection, policy, start, until, reject=reject), digests)
        if not weight:
            return Lesson(replace(marks, rated_until=until), rated=rated)
        start, edited_until = marks.edited_until, signal_queries.find_end(connection, policy, marks.edited_until, limit)
        edits = signal_queries.load_edit_pairs(connection, policy, weight, start, edited_until, reject=reject)
        return Lesson(Marks(until, edited_until), edits=split_frozen(edits, digests)[0], rated=rated)


def split_frozen(found: Sequence[Row], digests: frozenset[str]) -> tuple[list[Row], list[Row]]:
    """Rows that may be learnt from, and those that a frozen set asks. digests: of its prompts."""
    if not digests:
        return list(found), []
    is_frozen = [digest_prompt(row.prompt.messages) in digests for row in found]
    pairs = list(zip(found, is_frozen, strict=True))
    return [row for row, frozen in pairs if not frozen], [row for row, frozen in pairs if frozen]
