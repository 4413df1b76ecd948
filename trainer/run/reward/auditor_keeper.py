"""Keeps the auditor's states on disk, and has it learn what is new of its own split.

A state says which rows it has learnt, and is in place by one rename: a crash repeats a lesson from the state before it and never
doubles one. It is not part of rounds: a round that is killed finds the auditor as it was, or ahead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from trainer.run.intake.erased import ErasedRows
from trainer.run.reward.lessons import split_frozen
from trainer.run.reward.states import RewardStates, Update
from trainer.run.rows import rows
from trainer.text.rejected import Reject

if TYPE_CHECKING:
    from trainer.judge.auditor import Auditor

log = logging.getLogger("trainer.judge.auditor")

CHUNK = 16  # rows of one update: whole ones alone, so that its state follows from its rows
BULK_CHUNKS = 20
LEARNT = "learnt.json"


class AuditorKeeper:
    """Restores, teaches and saves one auditor. directory is of one base: another base has another.

    list_frozen_prompts names what it does not learn from (judge/frozen.digest_prompt).
    """

    def __init__(
        self,
        auditor: Auditor,
        database: sa.Engine,
        directory: Path,
        policy: str,
        reject: Reject,
        list_frozen_prompts: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self.auditor, self._database, self._policy, self._reject = auditor, database, policy, reject
        self._list_frozen_prompts = list_frozen_prompts
        self._states, self._erased = RewardStates(directory), ErasedRows(database)
        self._learnt: set[str] | None = None  # None before the state on disk is looked for

    def restore(self) -> None:
        """Take up the newest state that loads; without any, the auditor learns all its rows again."""
        self._states.prepare()
        learnt = self._states.load_newest(self._load)
        self._learnt = learnt or set()
        if learnt is not None:
            log.info("auditor %d is restored", self.auditor.version)

    def _load(self, state: Path) -> set[str]:
        """Load a state; returns the event ids that it has learnt from."""
        learnt = {str(event_id) for event_id in json.loads((state / LEARNT).read_text())}
        self.auditor.load(state)
        return learnt

    def teach(self) -> None:
        """Learn what is new, in whole chunks in the order of arrival, and save what came of it. Restores at first."""
        if self._learnt is None:
            self.restore()
        assert self._learnt is not None
        self.auditor.forget(self._erased.find(self.auditor.list_known()))
        with self._database.connect() as connection:
            pairs = rows.load_auditor(connection, self._policy, reject=self._reject)
        pairs, _ = split_frozen(pairs, self._list_frozen_prompts())
        new = [pair for pair in pairs if pair.event_id not in self._learnt]
        chunks = [new[start : start + CHUNK] for start in range(0, len(new), CHUNK)]
        chunks = [chunk for chunk in chunks if len(chunk) == CHUNK]
        if not chunks:
            return
        if len(chunks) > BULK_CHUNKS:
            self.auditor.learn_in_bulk(chunks, total=len(chunks) * CHUNK)
        else:
            for chunk in chunks:
                self.auditor.update(chunk, [])
        self._learnt |= {pair.event_id for chunk in chunks for pair in chunk}
        if not self._states.find(self.auditor.version).exists():  # nothing could be learnt from: it is as it was
            self._states.save(self.auditor.version, Update([], [], {}), self._write)

    def _write(self, directory: Path) -> None:
        self.auditor.save(directory)
        (directory / LEARNT).write_text(json.dumps(sorted(self._learnt or ())))
