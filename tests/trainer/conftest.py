"""The trainer's parts over an empty state directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.workbench import Workbench
from trainer.settings import TrainerSettings


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    trainer = {"round_every_preferences": 40, "round_every_minutes": 0, "reward": {"update_every_preferences": 16}}
    built = Workbench(TrainerSettings(state_dir=tmp_path, trainer=trainer))
    yield built
    built.writer.close()
