"""One more node for rounds that train in several: `python -m trainer.node`. Waits for launches, trains its part, waits again.

Needs the trainer's settings and its state directory's `rounds/`, at any path, and the base at the same path as the trainer. Reads no
database and no log, serves nothing, and keeps nothing: it can be killed at any point. It ends its processes when the trainer withdraws
the launch, or posts another.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from feedback.settings import load_settings
from trainer.process import limit_kept_primitives, stop_on_signals
from trainer.run.course.nodes import ENVIRONMENT, Launch, build_torchrun, read_launch
from trainer.run.course.workers import die_with_parent, end_process
from trainer.settings import TrainerSettings

log = logging.getLogger("trainer.node")

LOOK_EVERY_S = 1.0
RETRY_AFTER_S = 5.0


@dataclass
class Part:
    """This node's processes for a launch."""

    launch: Launch
    process: subprocess.Popen[bytes]


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    stopping = threading.Event()
    stop_on_signals(stopping)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(TrainerSettings)
    limit_kept_primitives()
    if settings.trainer.nice:
        os.nice(settings.trainer.nice)
    log.info("waiting for launches in %s", settings.rounds_dir)
    follow_launches(settings.rounds_dir, stopping)
    return 0


def follow_launches(folder: Path, stopping: threading.Event) -> None:
    """Take part in each launch until the process is to stop."""
    part: Part | None = None
    finished = ""
    try:
        while not stopping.wait(LOOK_EVERY_S):
            launch = read_launch(folder)
            if part is not None and (launch is None or launch.run != part.launch.run):
                log.info("%s is withdrawn", part.launch.run)
                end_process(part.process)
                part = None
            if part is not None and part.process.poll() is not None:
                log.info("%s ended here with code %d", part.launch.run, part.process.returncode)
                finished = part.launch.run if part.process.returncode == 0 else ""
                part = None
                stopping.wait(RETRY_AFTER_S)
                continue
            if part is None and launch is not None and launch.run != finished:
                part = join(folder, launch)
    finally:
        if part is not None:
            end_process(part.process)


def join(folder: Path, launch: Launch) -> Part:
    """Start this node's processes for a launch."""
    command = build_torchrun(launch, folder / launch.directory, is_head=False)
    log.info("%s: %d processes here, of %d nodes", launch.run, launch.num_processes, launch.num_nodes)
    env = {**os.environ, **ENVIRONMENT}
    return Part(launch, subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent))


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)
