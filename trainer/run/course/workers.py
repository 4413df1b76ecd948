"""Trains a round in several processes: writes the job into a directory, launches them, relays their progress, reads the result.

The trainer itself stays one process. If it ends, however that may be, so do the workers; started again, it launches them anew
and they go on from the newest snapshot. An error of one ends them all; where there are several nodes (nodes.py), it has all of them
begin again from the snapshot, a few times.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from trainer.learn.training import NothingToTrainOn
from trainer.learn.worker import Job, Result
from trainer.run.course.nodes import ENVIRONMENT, Launch, Nodes, NodesMissing, Posted, build_torchrun
from trainer.text.rejected import Reject

POLL_S = 0.1
STOP_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1


class WorkersFailed(Exception):
    """A process of a distributed training ended with an error."""


class RejectedByWorker(ValueError):
    """A row could not be learnt from; the text is the worker's."""


def build_command(directory: Path, device: str, num_processes: int) -> list[str]:
    """`accelerate launch` on GPUs; on CPUs, where it wants MPI, the torchrun beneath it, whose environment it reads alike."""
    worker = ["-m", "trainer.learn.worker", str(directory)]
    if device == "cpu":
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    else:
        launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
        launcher += ["--dynamo_backend", "no", "--main_process_port", "0", "--num_processes", str(num_processes)]
    return [sys.executable, "-m", *launcher, *worker]


def train_in_processes(
    job: Job,
    directory: Path,
    num_processes: int,
    nodes: Nodes | None = None,
    *,
    save_start: Callable[[Path], None],
    load_trained: Callable[[Path], None],
    progress: Callable[[float, Mapping[str, float]], None],
    check_stopping: Callable[[], None],
    reject: Reject,
) -> dict[str, float]:
    """Returns the training's metrics, with the policy as it was trained loaded.

    save_start, load_trained: of adapter "policy". progress and check_stopping, which is called all the time, may raise
    to stop the run. nodes: others that train with this one, as many processes each; None: this one alone. Raises
    NothingToTrainOn, WorkersFailed, NodesMissing.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    save_start(directory / "start")
    (directory / "job.json").write_bytes(msgspec.json.encode(job))
    with ExitStack() as posted:
        command = build_command(directory, job.device, num_processes)
        if nodes is not None:
            launch = posted.enter_context(post_launch(nodes, directory, num_processes))
            command = build_torchrun(launch, directory, is_head=True)
        process = launch_workers(command, directory / "workers.log")
        try:
            _follow(process, directory / "progress.jsonl", progress, check_stopping)
        finally:
            posted.close()  # first: ending a launcher may take longer than a stop allows
            end_process(process)
    if process.returncode != 0 and nodes is not None and has_waited_in_vain(directory / "workers.log"):
        raise NodesMissing(f"not all of {nodes.num} nodes came within {nodes.wait_s:g} s")
    if process.returncode != 0:
        raise WorkersFailed(_find_error(directory, process.returncode))
    result = msgspec.json.decode((directory / "result.json").read_bytes(), type=Result)
    for row in result.rejected:
        reject(row.event_id, row.part, RejectedByWorker(row.reason))
    if result.nothing_usable:
        raise NothingToTrainOn(result.nothing_usable)
    load_trained(directory / "trained")
    return result.metrics


def post_launch(nodes: Nodes, directory: Path, num_processes: int) -> Posted:
    """A launch of the job in a directory, for the other nodes to see."""
    launch = Launch(
        run=f"{directory.parent.name}-{secrets.token_hex(4)}",
        directory=str(directory.relative_to(nodes.folder)),
        num_nodes=nodes.num,
        num_processes=num_processes,
        endpoint=nodes.endpoint,
        wait_s=nodes.wait_s,
    )
    return Posted(nodes.folder, launch)


def launch_workers(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    """Start the launcher, which ends with this process."""
    with output.open("ab") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    """In a process that is about to become another's: end with the one that started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # the launcher then ends its workers


def has_waited_in_vain(output: Path) -> bool:
    """Whether torchrun's output says that the nodes did not meet."""
    return "RendezvousTimeoutError" in output.read_text(errors="replace")


def _follow(
    process: subprocess.Popen[bytes],
    path: Path,
    progress: Callable[[float, Mapping[str, float]], None],
    check_stopping: Callable[[], None],
) -> None:
    """Hand on whole lines as they come, until the process has ended."""
    read = 0
    while True:
        check_stopping()
        has_ended = process.poll() is not None
        for line in _read_lines(path, read):
            read += len(line)
            figures = json.loads(line)
            progress(figures.pop("share"), figures)
        if has_ended:
            return
        time.sleep(POLL_S)


def _read_lines(path: Path, start: int) -> list[bytes]:
    """Whole lines behind `start` bytes; none before the file is there."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(start)
        return [line for line in file if line.endswith(b"\n")]


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a launcher with its workers, by force if it takes long."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _find_error(directory: Path, returncode: int) -> str:
    try:
        said = (directory / "error.txt").read_text()
    except FileNotFoundError:
        lines = (directory / "workers.log").read_text(errors="replace").splitlines()
        said = next((line for line in reversed(lines) if "Error" in line), "no process said why")
    return f"training in several processes ended with code {returncode}: {said}"[:500]
