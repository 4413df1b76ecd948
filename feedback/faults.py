"""Named commit boundaries at which a process can be made to die: how `make chaos` proves that nothing is lost there.

Off, and free, unless the environment says otherwise: PREFLOOP_FAULTS=`relay.appended=0.05,…` gives the chance of a
SIGKILL at each passing of a point, PREFLOOP_FAULTS_SEED its dice, PREFLOOP_FAULTS_FILE where a line is kept first.
"""

from __future__ import annotations

import os
import random
import signal
import time

POINTS = {
    "choice.committed": "gateway: the choice is stored, its sender has no answer yet",
    "relay.appended": "gateway: the log has the records, the outbox has them still",
    "consumer.read": "trainer: records are read, nothing of them is stored",
    "consumer.committed": "trainer: rows and offset are stored, the log's group does not know",
    "reward.saved": "trainer: the reward model's state is saved, its preferences are not marked as used",
    "round.prepared": "trainer: the round has its plan, and has not trained",
    "round.labelled": "trainer: pairs that the reward model labelled are on disk, and nothing is learnt from them",
    "round.step": "trainer: the round took a step",
    "ppo.sampled": "trainer: a PPO round has the answers of an iteration, and nothing of them on disk",
    "ppo.measured": "trainer: what those answers are worth is on disk, and nothing is learnt from it",
    "ppo.learnt": "trainer: an iteration's steps are taken, the snapshot behind them is not",
    "round.trained": "trainer: the round's policy is saved, and not judged",
    "round.judged": "trainer: the round has its verdict, and no checkpoint",
    "round.published": "trainer: the checkpoint has its name, its round is open still",
    "store.blob": "trainer: one file of a checkpoint is in the store, its manifest is not",
    "store.blobs": "trainer: all files of a checkpoint and its signature are in the store, its manifest is not",
}


def parse_chances(text: str) -> dict[str, float]:
    """`point=chance,…` as a dictionary. Raises ValueError for a point that does not exist."""
    chances = {}
    for item in filter(None, text.split(",")):
        point, _, chance = item.partition("=")
        if point not in POINTS:
            raise ValueError(f"no fault point is called {point!r}: {', '.join(POINTS)}")
        chances[point] = float(chance or 1.0)
    return chances


_chances = parse_chances(os.environ.get("PREFLOOP_FAULTS", ""))
_rng = random.Random(os.environ.get("PREFLOOP_FAULTS_SEED", ""))


def reach(point: str) -> None:
    """Say that the process has come to `point`. It ends there, by SIGKILL, if the environment asks for it."""
    if _chances and _rng.random() < _chances.get(point, 0.0):
        _note(point)
        os.kill(os.getpid(), signal.SIGKILL)


def _note(point: str) -> None:
    if path := os.environ.get("PREFLOOP_FAULTS_FILE"):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{point} {os.getpid()} {time.time():.6f}\n".encode())
        os.fsync(descriptor)
        os.close(descriptor)
