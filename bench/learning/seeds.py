"""Seed policies of the worlds, trained from scratch once for each seed and kept: `python -m bench.learning.seeds`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.progress import Progress

from bench.learning.worlds import World, list_worlds, load_world, write_corpus
from trainer.seed import SeedSettings, build_seed


def build_policy(world: World, seed: int, directory: Path) -> Path:
    """The directory of the world's seed policy; it is trained if it is not there (one to three minutes)."""
    out = directory / f"{world.name}-{seed}"
    corpus = out.with_name(out.name + ".corpus.jsonl")
    if not corpus.exists():
        write_corpus(world, corpus, seed)
    with Progress(disable=True) as progress:
        build_seed(corpus, None, out, SeedSettings(seed=seed), progress)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.learning.seeds", description=__doc__)
    parser.add_argument("--worlds", nargs="*", default=list_worlds())
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("state/bench-learning/policies"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for name in arguments.worlds:
            print(build_policy(load_world(name), seed, arguments.out), flush=True)


if __name__ == "__main__":
    main()
