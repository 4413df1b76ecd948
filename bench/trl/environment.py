"""A release of TRL in an environment of its own, which sees this one's torch, transformers and peft.

Nothing goes into the project's own environment; torch is not downloaded again. Raises MissingTool with what failed.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

from bench.gateway.tools import MissingTool

SHARED = ("torch", "transformers", "accelerate", "huggingface-hub", "tokenizers", "safetensors", "numpy", "pyarrow")


def install_trl(folder: Path, requirement: str = "trl") -> Path:
    """The python of an environment with `requirement` in it, made once in `folder`: venv-trl, or venv-trl-1.12.0."""
    environment = folder / f"venv-{requirement.replace('==', '-')}"
    python, stamp = environment / "bin" / "python", environment / "installed"
    if stamp.exists() and stamp.read_text() == requirement:
        return python
    print(f"installing {requirement} (the first time only)", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    overrides = folder / "trl-overrides.txt"
    overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in SHARED))
    uv = [sys.executable, "-m", "uv"]
    _run([*uv, "venv", "--clear", "--python", sys.executable, str(environment)])
    _run([*uv, "pip", "install", "--python", str(python), "--overrides", str(overrides), requirement])
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    stamp.write_text(requirement)
    return python


def _run(argv: list[str]) -> None:
    if subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
        raise MissingTool(f"`{' '.join(argv)}` failed: see above (UV_FIND_LINKS names a folder or URL of wheels).")
