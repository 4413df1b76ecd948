"""The directory of a round under way, `rounds/r-000012/`: its durable steps, each in place by one rename.

plan.json, labelled.json (pairs that the reward model labelled), attempts.json, snapshots/ and workers/ (learning's own),
curve.jsonl (figures by step), phases.json, trained/ with trained.json, verdict.json.
Removed when the round's record is closed. Does not decide what a step holds.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from safetensors import SafetensorError, safe_open

from feedback.durable import fsync, publish_directory, write_durably
from feedback.outages import describe_error
from trainer.run.course.task import Judged
from trainer.run.rows.plan import Plan
from trainer.text.labelled_rows import Labelled

log = logging.getLogger("trainer.run.course.round")

T = TypeVar("T")

_PREFIX = "r-"
_UNFINISHED = ".unfinished"
_ITERATION, _TRAINED, _JUDGED = 1 << 20, 1 << 40, 1 << 41  # as progress: each more than any number of what is before it


class _Attempts(msgspec.Struct, frozen=True):
    """progress: the furthest that was seen, at the beginning of an attempt; attempt: the last one that came further."""

    progress: int = 0
    attempt: int = 0


class RoundFiles:
    """The files of one round. Used by the learner's thread alone."""

    def __init__(self, root: Path, number: int) -> None:
        self.root, self.path = root, root / f"{_PREFIX}{number:06d}"

    @property
    def snapshots(self) -> Path:
        """Where learning keeps its own state every few steps."""
        return self.path / "snapshots"

    @property
    def trained(self) -> Path:
        """The adapter that training left, once it is done."""
        return self.path / "trained"

    def read_plan(self) -> Plan | None:
        """The plan, None if there is none yet; one that cannot be read is set aside with all that was made by it."""
        try:
            return msgspec.json.decode((self.path / "plan.json").read_bytes(), type=Plan)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error("the plan in %s cannot be read and is made anew: %s", self.path, describe_error(error))
            self.remove()
            return None

    def write_plan(self, plan: Plan) -> None:
        """Make the plan durable: from here on the round has its rows."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write("plan.json", msgspec.json.encode(plan))
        fsync(self.root)

    def read_labelled(self) -> Labelled | None:
        """The pairs that the reward model labelled, None while it has not."""
        return self._read("labelled.json", Labelled)

    def read_label_figures(self) -> dict[str, float]:
        """Figures of these pairs; {} for a round that asked for none."""
        labelled = self.read_labelled()
        return labelled.figures() if labelled else {}

    def write_labelled(self, labelled: Labelled) -> None:
        """Make these pairs durable: from here on the round trains on them and no others."""
        self._write("labelled.json", msgspec.json.encode(labelled))

    def read_metrics(self) -> dict[str, float] | None:
        """What training measured, None while it is not done."""
        return self._read("trained/trained.json", dict[str, float])

    def write_trained(self, save_policy: Callable[[Path], None], metrics: Mapping[str, float]) -> None:
        """Make the trained adapter durable: from here on nothing is trained again."""
        unfinished = self.path / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_policy(unfinished)
        (unfinished / "trained.json").write_text(json.dumps(dict(metrics)))
        shutil.rmtree(self.trained, ignore_errors=True)  # one that cannot be read
        publish_directory(unfinished, self.trained)

    def count_deaths(self, attempt: int) -> int:
        """How often the trainer died since the round last came further, by durable steps. attempt: this one's number, from 1."""
        try:
            last = msgspec.json.decode((self.path / "attempts.json").read_bytes(), type=_Attempts)
        except (FileNotFoundError, ValueError):
            last = _Attempts()
        progress = self._measure_progress()
        if progress > last.progress:
            last = _Attempts(progress, attempt - 1)
            self._write("attempts.json", msgspec.json.encode(last))
        return attempt - 1 - last.attempt

    def _measure_progress(self) -> int:
        """Where learning stands in the newest snapshot: iterations, then steps of one; more if training or judging is done."""
        if (self.path / "verdict.json").exists():
            return _JUDGED
        if self.trained.exists():
            return _TRAINED
        try:
            with safe_open(self.snapshots / "snapshot.safetensors", framework="np") as file:
                loop = json.loads(file.metadata()["loop"])
            memo = loop["memo"]
            return _ITERATION * int(memo.get("iteration", 0)) + int(memo.get("position", loop["step_number"]))
        except (OSError, SafetensorError, TypeError, KeyError, ValueError):
            return 0

    def read_verdict(self) -> Judged | None:
        """What the gate said, None while it has not."""
        return self._read("verdict.json", Judged)

    def write_verdict(self, judged: Judged) -> None:
        """Make the verdict durable: from here on nothing is sampled again."""
        self._write("verdict.json", msgspec.json.encode(judged))

    def add_point(self, share: float, figures: Mapping[str, float]) -> None:
        """Append a step's figures. A step that is trained again after a kill is read once: see read_curve."""
        with (self.path / "curve.jsonl").open("a") as file:
            file.write(json.dumps({"share": share, **figures}) + "\n")

    def read_curve(self) -> list[dict[str, float]]:
        """Figures by `share` of the training done, the last of those written for it; broken lines are left out."""
        points: dict[float, dict[str, float]] = {}
        try:
            lines = (self.path / "curve.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                point = json.loads(line)
            except ValueError:  # a kill in the middle of a line
                continue
            points[point["share"]] = point
        return [points[share] for share in sorted(points)]

    def read_phases(self) -> dict[str, float]:
        """Seconds by phase so far, over all attempts."""
        try:
            phases: dict[str, float] = json.loads((self.path / "phases.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return phases

    def add_phase(self, name: str, seconds: float) -> None:
        """Count the time that an attempt spent in a phase."""
        self.path.mkdir(parents=True, exist_ok=True)
        phases = self.read_phases()
        self._write("phases.json", json.dumps({**phases, name: phases.get(name, 0.0) + seconds}).encode())

    def split_phase(self, name: str, part: str, share: float) -> None:
        """Give a share of a phase's time a name of its own."""
        phases = self.read_phases()
        seconds = phases.get(name, 0.0)
        self._write("phases.json", json.dumps({**phases, part: share * seconds, name: (1 - share) * seconds}).encode())

    def remove(self) -> None:
        """Remove the whole directory, its name first: a crash leaves only what `remove_orphans` takes."""
        if not self.path.exists():
            return
        doomed = self.path.with_name(f"{_UNFINISHED}-{self.path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        self.path.rename(doomed)
        shutil.rmtree(doomed)

    def _read(self, name: str, kind: type[T]) -> T | None:
        """A step's file; None if it is not there, or cannot be read: the step is done anew."""
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error("%s in %s cannot be read and is made anew: %s", name, self.path, describe_error(error))
            return None

    def _write(self, name: str, content: bytes) -> None:
        write_durably(self.path / name, content)


def remove_orphans(root: Path, open_number: int | None) -> list[str]:
    """Remove the directories of rounds that are not open, and what was half removed; return their names."""
    if not root.is_dir():
        return []
    kept = None if open_number is None else f"{_PREFIX}{open_number:06d}"
    orphans = [path for path in root.iterdir() if path.is_dir() and path.name != kept]
    for path in orphans:
        shutil.rmtree(path)
    return sorted(path.name for path in orphans)
