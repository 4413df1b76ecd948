"""The trainer's parts over an empty state directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.workbench import Workbench
from trainer.settings import TrainerSettings


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """As the trainer runs by default: how many threads share a product decides its last bits, and a busy machine how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    trainer = {
        "round_every_preferences": 40, "round_every_minutes": 0, "reward": {"update_every_preferences": 16},
        "dpo": {"restart_min_rows": 0},
    }  # fmt: skip
    built = Workbench(TrainerSettings(state_dir=tmp_path, trainer=trainer))
    yield built
    built.writer.close()
