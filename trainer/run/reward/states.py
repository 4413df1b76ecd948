"""The reward model's states on disk, `v-000012/`: whole the moment they have their name; and what each says it used.

A state that does not load is set aside, never deleted. Knows nothing of the inbox's marks: reward_keeper.py keeps both in
step.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from feedback.durable import fsync, publish_directory, write_durably
from feedback.outages import describe_error

T = TypeVar("T")
log = logging.getLogger("trainer.learn.reward")

UNFINISHED = ".unfinished"
SUPERSEDED = ".superseded"
SET_ASIDE = "unreadable-"  # begins the name of a state that did not load
ACCEPTED = "accepted.json"


@dataclass(frozen=True)
class Marks:
    """The last signal that was read for ratings, and the last that was read for edits, which older states do not say."""

    rated_until: int = 0
    edited_until: int = 0


@dataclass(frozen=True)
class Update:
    """Which preferences an update learnt from, by their ids; what it measured; and up to where signals were read for it.

    state: a name of its own for what came of it; parent: of the state that it began from. "" before states had names.
    """

    new: list[int]
    replayed: list[int]
    metrics: dict[str, float]
    marks: Marks = Marks()
    state: str = ""
    parent: str = ""

    def describe_uses(self) -> str:
        """All but what it measured, as JSON."""
        kept = {name: getattr(self, name) for name in ("new", "replayed", "state", "parent")}
        return json.dumps(kept | asdict(self.marks))


@dataclass(frozen=True)
class Accepted:
    """The version that rounds use, and what it measured when it was accepted, as JSON holds it."""

    version: int
    figures: dict[str, Any]


class RewardStates:
    """Saved states of one base's reward model, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._kept: set[str] = set()

    def prepare(self) -> None:
        """Make the directory, and remove what a crash left half written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in (UNFINISHED, SUPERSEDED):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def remove_others(self, is_ours: Callable[[int, Update], bool]) -> None:
        """Remove states that the database knows nothing of: another trainer learnt meanwhile, from a state before them."""
        for state in list_states(self.directory):
            try:
                used = read_uses(state)
            except Exception:  # it does not load either, and is set aside then
                continue
            if not is_ours(read_version(state), used):
                log.warning("%s is removed: another trainer's reward model is newer", state.name)
                state.rename(self.directory / SUPERSEDED)
                shutil.rmtree(self.directory / SUPERSEDED)

    def find(self, version: int) -> Path:
        return self.directory / name_state(version)

    def save(self, version: int, done: Update, write: Callable[[Path], None]) -> None:
        """Save a version with what its update used; of the older ones two are kept, and those that are known to load."""
        directory = self.directory / UNFINISHED
        shutil.rmtree(directory, ignore_errors=True)
        write(directory)
        (directory / "used.json").write_text(done.describe_uses())
        publish_directory(directory, self.find(version))
        accepted = self.read_accepted()
        kept = {*self._kept, *([name_state(accepted.version)] if accepted else [])}
        for old in list_states(self.directory)[:-2]:
            if old.name not in kept:
                shutil.rmtree(old)

    def load_newest(self, load: Callable[[Path], T]) -> T | None:
        """What `load` gives for the newest state that loads; those that do not are set aside. None if there is none."""
        for state in reversed(list_states(self.directory)):
            try:
                loaded = load(state)
            except Exception as error:  # whatever a damaged disk can do: the rows it learnt from are still there
                self._set_aside(state, error)
                continue
            self._kept.add(state.name)  # it is known to load, the newer ones are not yet
            return loaded
        return None

    def _set_aside(self, state: Path, error: Exception) -> None:
        """Rename a state that does not load, so that nothing is lost and nothing takes it for whole."""
        aside = self.directory / f"{SET_ASIDE}{state.name}-{time.time_ns()}"
        state.rename(aside)
        fsync(self.directory)
        log.error("%s cannot be loaded and is now %s: %s", state.name, aside.name, describe_error(error))

    def list_aside(self, version: int) -> Sequence[Path]:
        """States of this version that were set aside, oldest first."""
        return sorted(self.directory.glob(f"{SET_ASIDE}{name_state(version)}-*"))

    def read_accepted(self) -> Accepted | None:
        """The version in use, None if none was accepted or its state is gone."""
        try:
            read = json.loads((self.directory / ACCEPTED).read_text())
            accepted = Accepted(int(read["version"]), dict(read["figures"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return accepted if self.find(accepted.version).is_dir() else None

    def find_in_use(self) -> tuple[int, Path] | None:
        """The version in use and its directory: the one accepted, before that the newest; None if there is none. Reads only."""
        if accepted := self.read_accepted():
            return accepted.version, self.find(accepted.version)
        states = list_states(self.directory) if self.directory.is_dir() else []
        return (read_version(states[-1]), states[-1]) if states else None

    def accept(self, accepted: Accepted) -> None:
        """Have rounds use a version from here on."""
        said = json.dumps({"version": accepted.version, "figures": accepted.figures})
        write_durably(self.directory / ACCEPTED, said.encode())


def name_state(version: int) -> str:
    """The directory of the state after this update."""
    return f"v-{version:06d}"


def list_states(directory: Path) -> list[Path]:
    """Saved states, oldest first."""
    return sorted(path for path in directory.iterdir() if path.name.startswith("v-"))


def read_version(state: Path) -> int:
    """The version that a state's directory is named by."""
    return int(state.name.removeprefix("v-"))


def read_uses(state: Path) -> Update:
    """Which rows the last update of a saved state used. Raises what a damaged file raises."""
    return parse_uses((state / "used.json").read_text())


def parse_uses(text: str) -> Update:
    """What `describe_uses` wrote. Raises what damaged text raises."""
    used: dict[str, Any] = json.loads(text)
    new, replayed = ([int(row_id) for row_id in used[name]] for name in ("new", "replayed"))
    names = (str(used.get(name, "")) for name in ("state", "parent"))
    marks = Marks(int(used.get("rated_until", 0)), int(used.get("edited_until", 0)))
    return Update(new, replayed, {}, marks, *names)
