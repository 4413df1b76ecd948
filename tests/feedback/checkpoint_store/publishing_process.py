"""Puts a directory into a store, as a process that tests kill: URL, directory."""

import sys
from pathlib import Path

from feedback.checkpoint_store import open_store

if __name__ == "__main__":
    open_store(sys.argv[1]).put(Path(sys.argv[2]))
    print("done", flush=True)
