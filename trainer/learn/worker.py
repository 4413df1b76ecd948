"""One process of a round's distributed training: `python -m trainer.learn.worker DIRECTORY`, started by run/workers.

Reads job.json and the adapter in start/, trains with the other processes, and leaves trained/ and result.json, which the
first process writes; meanwhile progress.jsonl grows by a line a step. Knows no database, and nothing of rounds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from feedback.durable import write_durably
from feedback.outages import describe_error
from trainer.learn.dpo_step import Preference
from trainer.learn.sft import Example


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained. base: directory or hub id; model and section: settings as JSON holds them; rows: of the kind.

    snapshots: the directory of the run's own state, kept from one attempt to the next; as seen from the job's directory.
    """

    kind: Literal["dpo", "sft"]
    base: str
    device: str
    model: dict[str, Any]
    section: dict[str, Any]
    seed: int
    engine_share: float = 0.0
    torch_threads: int
    snapshots: str
    snapshot_every: int
    preferences: list[Preference] = []
    examples: list[Example] = []


class Rejected(msgspec.Struct, frozen=True):
    """A row that could not be learnt from."""

    event_id: str
    part: str
    reason: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """metrics: as run_dpo and run_sft return them, with the number of processes and the first one's share of the base.

    nothing_usable: why there was nothing to train on, else "".
    """

    metrics: dict[str, float] = {}
    rejected: list[Rejected] = []
    nothing_usable: str = ""


def train_job(directory: Path) -> None:
    """Do the job in a directory, as one of the processes that the launcher started."""
    import torch
    from accelerate import PartialState

    from trainer.learn.dpo import train_preferences
    from trainer.learn.loop import Snapshots
    from trainer.learn.sft import train_examples
    from trainer.learn.training import NothingToTrainOn
    from trainer.model.backbone import Backbone
    from trainer.sections.model import ModelSection
    from trainer.sections.training import DpoSection, SftSection

    job = msgspec.json.decode((directory / "job.json").read_bytes(), type=Job)
    torch.set_num_threads(job.torch_threads)
    state = PartialState(cpu=job.device == "cpu")
    section = ModelSection.model_validate(job.model)
    device = str(state.device)
    backbone = Backbone.load(job.base, section, seed=job.seed, device=device, engine_share=job.engine_share)
    backbone.adapters.load("policy", directory / "start")
    rejected: list[Rejected] = []

    def reject(event_id: str, part: str, error: Exception) -> None:
        rejected.append(Rejected(event_id, part, describe_error(error)))

    def report(share: float, figures: Mapping[str, float]) -> None:
        if state.is_main_process:
            with (directory / "progress.jsonl").open("a") as file:
                file.write(json.dumps({"share": share, **figures}) + "\n")

    options: dict[str, Any] = {
        "seed": job.seed,
        "snapshots": Snapshots(directory / job.snapshots, job.snapshot_every),
        "progress": report,
        "reject": reject,
    }
    metrics, nothing_usable = {}, ""
    try:
        if job.kind == "dpo":
            metrics = train_preferences(backbone, job.preferences, DpoSection.model_validate(job.section), **options)
        else:
            metrics = train_examples(backbone, job.examples, SftSection.model_validate(job.section), **options)
    except NothingToTrainOn as error:
        nothing_usable = str(error)
    if state.is_main_process:
        backbone.adapters.save("policy", directory / "trained")
        about = {"num_processes": float(state.num_processes), "held_share": backbone.held_share}
        result = Result(metrics={**metrics, **about}, rejected=rejected, nothing_usable=nothing_usable)
        write_durably(directory / "result.json", msgspec.json.encode(result))
    state.wait_for_everyone()
    state.destroy_process_group()


def main(directory: Path) -> int:
    """Return the exit status; the first error of any process is left in error.txt."""
    try:
        train_job(directory)
    except Exception as error:  # the launcher ends the other processes
        text = f"process {os.environ.get('RANK', '0')}: {type(error).__name__}: {describe_error(error)}"
        try:
            with (directory / "error.txt").open("x") as file:
                file.write(text)
        except FileExistsError:
            pass
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
