"""The seed policy that tests with a real engine share: built once, and kept in the checkout's build/, apart from state/.

Its folder is named by what it is made from, so that no test runs on the policy of another release. A demo's policy that was
built since is copied, which saves the minutes; nothing is written where it lies.
"""

import fcntl
import hashlib
import shutil
from pathlib import Path

from prefloop.startup import build_seed_policy

ROOT = Path(__file__).parents[1]
DEMO_SEED, MARKER = ROOT / "state" / "seed", "seed.json"
SOURCES = ("trainer/seed.py", "prefloop/demo/worlds/capitals.py")


def find_seed_policy() -> Path:
    """The directory of the seed policy; takes a minute or two the first time. Nobody may write there."""
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in SOURCES)).hexdigest()
    folder = ROOT / "build" / "tests" / f"seed-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another session may be building it
        if not (folder / "seed").exists() and is_newer(DEMO_SEED / MARKER):
            shutil.copytree(DEMO_SEED, folder / "seed")
        return build_seed_policy(folder)


def is_newer(marker: Path) -> bool:
    """Whether the policy was finished after its sources were last changed."""
    return marker.exists() and marker.stat().st_mtime > max((ROOT / name).stat().st_mtime for name in SOURCES)
