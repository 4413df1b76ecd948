"""Build the control plane's one program from the Go module beside this file, once, into a cache.

Promises: a folder with etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kwok and kubectl (links to one file)
and, under `stages/`, what kwok does with nodes and pods. Two builds at once wait for each other. It fetches Go modules only;
the Go that go.mod asks for must be installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MODULE = Path(__file__).with_name("controlplane")
PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "kubectl")
STAGES = ("node/fast", "node/heartbeat-with-lease", "pod/general", "volume/fast")
VERSION_VARIABLES = "k8s.io/component-base/version"  # without a version that parses, clients refuse the server

Say = Callable[[str], None]


class BuildFailed(Exception):
    """The control plane or a CRD cannot be had here; the text says why and what to do."""


def cache_dir() -> Path:
    """Where builds and CRDs are kept: $PREFLOOP_CACHE_DIR/kubernetes, else ~/.cache/prefloop/kubernetes."""
    given = os.environ.get("PREFLOOP_CACHE_DIR")
    return (Path(given) if given else Path.home() / ".cache" / "prefloop") / "kubernetes"


def kubernetes_version() -> str:
    """The Kubernetes that go.mod pins, with its v."""
    return find_version("k8s.io/kubernetes")


def find_version(module: str) -> str:
    """The version of a module that go.mod requires. Raises BuildFailed if it requires none."""
    found = re.search(rf"^\s+{re.escape(module)} (v\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise BuildFailed(f"{MODULE}/go.mod does not require {module}")
    return found[1]


def find_binaries() -> Path | None:
    """The folder of the binaries if they are built from the sources as they are now."""
    folder = cache_dir() / kubernetes_version()
    stamp = folder / "sources.sha256"
    return folder if stamp.exists() and stamp.read_text() == _digest_sources() else None


def build_binaries(say: Say = print) -> Path:
    """The folder of the binaries; builds them the first time (minutes). Raises BuildFailed."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building right now
        found = find_binaries()
        if found is not None:
            return found
        _check_go()
        folder = cache_dir() / kubernetes_version()
        say(f"== Building the control plane of Kubernetes {kubernetes_version()} into {folder} (minutes, once)")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=cache_dir()) as name:
            built = Path(name) / folder.name
            built.mkdir()
            _build(built)
            (built / "sources.sha256").write_text(_digest_sources())
            shutil.rmtree(folder, ignore_errors=True)
            built.rename(folder)
        say(f"== The control plane is built ({time.monotonic() - started:.0f} s)")
    return folder


def _build(folder: Path) -> None:
    version = kubernetes_version()
    major, minor = version[1:].split(".")[:2]
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = " ".join(["-s -w", *(f"-X {VERSION_VARIABLES}.{name}={value}" for name, value in values.items())])
    run_go("build", "-trimpath", "-ldflags", flags, "-o", str(folder / "controlplane"), ".")
    for part in PARTS:
        (folder / part).symlink_to("controlplane")
    kwok = download_module("sigs.k8s.io/kwok", find_version("sigs.k8s.io/kwok"))
    stages = folder / "stages"
    stages.mkdir()
    for path in (path for stage in STAGES for path in sorted((kwok / "kustomize" / "stage" / stage).glob("*.yaml"))):
        if "kind: Stage" in path.read_text():
            shutil.copy(path, stages / path.name)


def download_module(module: str, version: str) -> Path:
    """The folder of a Go module's files, downloaded the first time. Raises BuildFailed."""
    return Path(json.loads(run_go("mod", "download", "-json", f"{module}@{version}", folder=Path("/")))["Dir"])


def run_go(*arguments: str, folder: Path = MODULE) -> str:
    """What a go command prints; it is niced, as it takes every core for minutes. Raises BuildFailed with its end."""
    environment = {**os.environ, "GOFLAGS": f"-buildvcs=false -p={os.cpu_count() or 1}"}
    command = ["nice", "-n", "10", "go", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    if done.returncode != 0:
        raise BuildFailed(f"go {' '.join(arguments[:2])} failed:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return done.stdout


def explain_missing_go() -> str | None:
    """What is missing to build the control plane, in words; None if nothing is."""
    required = re.findall(r"^go (\d+)\.(\d+)", (MODULE / "go.mod").read_text(), re.MULTILINE)[0]
    words = f"Go {'.'.join(required)} or newer is needed to build the control plane"
    if shutil.which("go") is None:
        return f"{words}, and there is no go"
    found = re.search(r"go(\d+)\.(\d+)", subprocess.run(["go", "version"], capture_output=True, text=True).stdout)
    if found is None or (int(found[1]), int(found[2])) < (int(required[0]), int(required[1])):
        return f"{words}, and `go version` says {found[0] if found else 'nothing'}"
    return None


def _check_go() -> None:
    missing = explain_missing_go()
    if missing:
        raise BuildFailed(missing)


def _digest_sources() -> str:
    return hashlib.sha256(
        b"".join((MODULE / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))
    ).hexdigest()
