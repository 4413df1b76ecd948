"""The programs that the bench needs: compiled, downloaded or installed once into its folder, then used again.

Nothing goes into the project's own environment or the system. Raises MissingTool with what to install.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent
ROUTER = "vllm-router==0.1.17"
LITELLM = "litellm[proxy]==1.106.2"
_WRK_PACKAGES = ("wrk", "libluajit-5.1-2", "libluajit-5.1-common")


class MissingTool(Exception):
    """Something the bench needs is not there; the message says how to get it."""


def compile_program(name: str, folder: Path, sources: Path = SOURCES) -> Path:
    """Compile `<name>.c` of `sources` unless that was done since it changed. Returns the program's path."""
    source, program = sources / f"{name}.c", folder / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise MissingTool("A C compiler is needed for mock and client: install one (Debian: apt-get install gcc).")
    print(f"compiling {source.name}", flush=True)
    _run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], folder)
    return program


def find_wrk(folder: Path) -> list[str]:
    """How wrk is started: the system's, else Debian's package unpacked into `folder`."""
    found = shutil.which("wrk")
    if found:
        return [found]
    unpacked = folder / "wrk"
    program = unpacked / "usr" / "bin" / "wrk"
    if not program.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise MissingTool("wrk is needed: install it (https://github.com/wg/wrk; Debian: apt-get install wrk).")
        print("fetching wrk", flush=True)
        unpacked.mkdir(exist_ok=True)
        try:
            _run(["apt-get", "download", *_WRK_PACKAGES], unpacked)
        except MissingTool:
            raise MissingTool("wrk is needed: run apt-get update and apt-get install wrk.") from None
        for package in unpacked.glob("*.deb"):
            _run(["dpkg-deb", "-x", package.name, "."], unpacked)
    libraries = next((unpacked / "usr" / "lib").glob("*/libluajit*")).parent
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(program)]


def install_python(requirement: str, folder: Path) -> Path:
    """An environment of its own with `requirement` in it. Returns its bin folder."""
    name = requirement.partition("=")[0].partition("[")[0]
    environment = folder / f"venv-{name}"
    stamp = environment / "installed"
    if not stamp.exists() or stamp.read_text() != requirement:
        print(f"installing {requirement} (the first time only)", flush=True)
        python = str(environment / "bin" / "python")
        uv = [sys.executable, "-m", "uv"]
        _run([*uv, "venv", "--clear", "--python", sys.executable, str(environment)], folder)
        _run([*uv, "pip", "install", "--python", python, requirement], folder)
        stamp.write_text(requirement)
    return environment / "bin"


def _run(argv: Sequence[str], folder: Path) -> None:
    if subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL).returncode:  # its own output shows the progress
        raise MissingTool(f"`{' '.join(argv)}` failed: see above.")
