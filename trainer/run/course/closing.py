"""Closes rounds: the report beside the checkpoints, the record with its lineage in one transaction, then the files go.

A crash on the way is made good at the next start: a round whose checkpoint has its name is closed from its manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.database import Writer
from feedback.outages import describe_error
from trainer.run import rounds
from trainer.run.course.files import RoundFiles, remove_orphans
from trainer.run.intake.quarantine import Quarantine
from trainer.run.publish import lineage
from trainer.run.publish.publisher import Publisher
from trainer.run.report.report import ReportData, collect_figures, name_figures, name_report, render_report
from trainer.run.report.reporter import Reporter
from trainer.run.reward.keeper import read_history
from trainer.run.rounds import Ending, OpenRound
from trainer.text.labelled_rows import Labelled

log = logging.getLogger("trainer.run.learner")


class Closer:
    """Closes the rounds below one directory. Used by the learner's thread alone."""

    def __init__(
        self,
        root: Path,
        database: sa.Engine,
        writer: Writer,
        publisher: Publisher,
        quarantine: Quarantine,
        reporter: Reporter,
        now: Callable[[], float],
    ) -> None:
        self._root, self._database, self._writer = root, database, writer
        self._publisher, self._quarantine, self._reporter, self._now = publisher, quarantine, reporter, now

    def close(self, opened: OpenRound, files: RoundFiles, ending: Ending) -> None:
        """Put the round on record, with what its checkpoint learnt from; its report first, its files go last."""
        self._quarantine.flush()
        now, plan = self._now(), files.read_plan()
        with self._database.connect() as connection:
            set_aside = self._quarantine.list_since(connection, opened.started_at)
            history = read_history(connection)
            learnt = set(self._quarantine.leave_out(connection, plan.event_ids)) if plan else set()
            rungs = rounds.list_rungs(connection)
        details: dict[str, Any] = {"phases": files.read_phases(), "set_aside": count_by_part(set_aside)}
        if plan:
            details |= {
                "parent": plan.parent,
                "reference": plan.reference,
                "num_new": len(plan.new),
                "num_replayed": len(plan.replayed),
                "num_available": plan.num_available,
                "reward_version": plan.reward_version,
                "num_frozen": plan.num_frozen,
                "watermark": plan.watermark,
            }
        labelled, judged = files.read_labelled(), files.read_verdict()
        if labelled:
            labelled = self._leave_out_rejected(labelled)
            details["labelled"] = describe_labelled(labelled)
        if plan:
            ending = replace(
                ending, start=plan.start, num_left=plan.num_left, last_preference_id=plan.last_preference_id
            )
        if judged:
            ending = replace(ending, was_rejected=not judged.ok)
            details["reward_parts"] = judged.reward_parts
            if judged.rung and ending.checkpoint:
                details |= self._climb(judged.rung, ending.checkpoint, rungs)
        ending = replace(ending, details=details)
        samples = judged.samples if judged else []
        shown = [*rungs, details["rung"]] if "rung" in details else rungs
        pairs = labelled.pairs if labelled else []
        self._write_report(
            ReportData(opened, ending, now, files.read_curve(), history, samples, set_aside, shown, pairs)
        )

        def record(connection: sa.Connection) -> None:
            rounds.finish_round(connection, opened.number, ending, now)
            if ending.checkpoint and plan:
                new = [event_id for event_id in plan.new if event_id in learnt]
                replayed = [event_id for event_id in plan.replayed if event_id in learnt]
                sources = {each.pair.event_id: each.source for each in labelled.pairs} if labelled else {}
                role: lineage.Role = "prompt" if plan.kind == "ppo" else "chosen"
                lineage.record_rows(connection, ending.checkpoint, new, replayed, role=role, labelled=sources)

        self._writer.run(record).result()
        files.remove()
        self._reporter.show_finished(opened.number, ending.checkpoint, ending.reason)

    def _leave_out_rejected(self, labelled: Labelled) -> Labelled:
        """Less the pairs that training could not use."""
        with self._database.connect() as connection:
            used = set(self._quarantine.leave_out(connection, [each.pair.event_id for each in labelled.pairs]))
        return msgspec.structs.replace(labelled, pairs=[each for each in labelled.pairs if each.pair.event_id in used])

    def _climb(self, rung: dict[str, Any], checkpoint: str, below: list[dict[str, Any]]) -> dict[str, Any]:
        """The checkpoint's rung under its name, and what an operator should know of the ladder."""
        from trainer.judge.ladder import describe_ladder, read_rung  # imports torch, which is loaded by now

        named = {**rung, "checkpoint": checkpoint, "first": self._publisher.name_first()}
        return {"rung": named, "ladder": describe_ladder([read_rung(each) for each in (*below, named)])}

    def _write_report(self, data: ReportData) -> None:
        directory = self._publisher.root / "reports"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / name_report(data.opened.number, data.ending.checkpoint)
            path.write_text(render_report(data), encoding="utf-8")
            name_figures(path).write_bytes(msgspec.json.encode(collect_figures(data)))
        except Exception as error:  # a report that cannot be drawn stops no round
            log.exception("round %d has no report: %s", data.opened.number, describe_error(error))

    def close_published(self) -> None:
        """A crash, or a database that was gone, between the rename and the record: the manifest says which round it was."""
        with self._database.connect() as connection:
            opened = rounds.find_open_round(connection)
        if opened and (published := self._publisher.find_of_round(opened.number)):
            manifest = published.manifest
            ending = Ending(
                reason="published before its record closed",
                checkpoint=manifest.id,
                metrics=manifest.metrics,
                start=str(manifest.settings.get("start", "stable")),
                last_preference_id=int(manifest.settings.get("last_preference_id", opened.last_preference_id)),
            )
            self.close(opened, RoundFiles(self._root, opened.number), ending)

    def remove_orphans(self) -> None:
        """Remove what rounds left that are not open any more. Called at the start."""
        with self._database.connect() as connection:
            opened = rounds.find_open_round(connection)
        for name in remove_orphans(self._root, opened.number if opened else None):
            log.info("removed %s, left by a crash", name)


def describe_labelled(labelled: Labelled) -> dict[str, Any]:
    """What a round's record says of the pairs that the reward model labelled."""
    return {
        "num": len(labelled.pairs),
        "num_prompts": labelled.num_prompts,
        "num_alike": labelled.num_alike,
        "num_unsure": labelled.num_unsure,
        "probability": labelled.figures().get("labelled_probability"),
        "reason": labelled.reason,
    }


def count_by_part(set_aside: list[tuple[str, str, str]]) -> dict[str, int]:
    """How many rows were set aside, by the part of learning they failed in."""
    counts: dict[str, int] = {}
    for _, part, _ in set_aside:
        counts[part] = counts.get(part, 0) + 1
    return counts
