"""The seed policy that tests with a real engine share: built once, and kept in the checkout's build/, apart from state/.

Its folder is named by what it is made from, so that no test runs on the policy of another release.
"""

import fcntl
import hashlib
from pathlib import Path

from prefloop.startup import build_seed_policy

ROOT = Path(__file__).parents[1]
SOURCES = ("trainer/seed.py", "prefloop/demo/world.py")


def find_seed_policy() -> Path:
    """The directory of the seed policy; takes a minute or two the first time. Nobody may write there."""
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in SOURCES)).hexdigest()
    folder = ROOT / "build" / "tests" / f"seed-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another session may be building it
        return build_seed_policy(folder)
