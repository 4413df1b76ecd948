"""The demo's worlds by name. `python -m prefloop.demo.worlds.catalogue --world NAME --out DIR` writes a world's files.

Those files lie beside the world's base policy: facts for the offline gate, examples for the playground, and the corpus of
which the seed policy is trained.
"""

import argparse
from pathlib import Path

from prefloop.demo.worlds.assistant import Assistant
from prefloop.demo.worlds.capitals import Capitals
from prefloop.demo.worlds.world import World

WORLDS: dict[str, World] = {world.name: world for world in (Capitals(), Assistant())}
DEFAULT_WORLD = "capitals"


def main() -> None:
    """Write a world's files."""
    parser = argparse.ArgumentParser(prog="python -m prefloop.demo.worlds.catalogue", description=__doc__)
    parser.add_argument("--world", choices=list(WORLDS), default=DEFAULT_WORLD)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    WORLDS[arguments.world].write_files(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
