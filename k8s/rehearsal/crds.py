"""Find the custom resource definitions of the operators that the manifests rely on, in their own released packages.

CloudNativePG, KEDA and the Prometheus operator ship theirs in their Go modules. Strimzi's are written by its own generator
from its API classes, both from Maven; the generator needs a newer Java than Kafka does. Everything lands in the cache of
binaries.py and is never committed. Operators themselves are not fetched.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from k8s.rehearsal.binaries import BuildFailed, Say, cache_dir, download_module

STRIMZI_POM = Path(__file__).with_name("strimzi-pom.xml")
STRIMZI_KINDS = {
    "kafka": "kafka.Kafka",
    "kafkanodepool": "nodepool.KafkaNodePool",
    "kafkatopic": "topic.KafkaTopic",
    "kafkauser": "user.KafkaUser",
}
MIN_JAVA = 21


@dataclass(frozen=True)
class GoCrds:
    """CRDs in a Go module: which files of which folder."""

    operator: str
    module: str
    version: str
    pattern: str


IN_GO_MODULES = [
    GoCrds("cloudnative-pg", "github.com/cloudnative-pg/cloudnative-pg", "v1.27.0", "config/crd/bases/*.yaml"),
    GoCrds("keda", "github.com/kedacore/keda/v2", "v2.17.2", "config/crd/bases/*.yaml"),
    GoCrds(
        "prometheus-operator",
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "example/prometheus-operator-crd/*.yaml",
    ),
]


def fetch_crds(say: Say = print) -> list[Path]:
    """Every CRD file, fetched the first time. Raises BuildFailed."""
    root = cache_dir() / "crds"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for crds in IN_GO_MODULES:
            folder = root / f"{crds.operator}-{crds.version}"
            if not folder.is_dir():
                say(f"== Fetching the CRDs of {crds.operator} {crds.version}")
                _copy_from_module(crds, folder)
        folder = root / f"strimzi-{strimzi_version()}"
        if not folder.is_dir():
            say(f"== Generating the CRDs of Strimzi {strimzi_version()}")
            _generate_strimzi(folder)
        folders = [*(root / f"{crds.operator}-{crds.version}" for crds in IN_GO_MODULES), folder]
    return [path for folder in folders for path in sorted(folder.glob("*.yaml"))]


def strimzi_version() -> str:
    """The version of Strimzi that the pom names."""
    return str(re.findall(r"<version>([^<]+)</version>", STRIMZI_POM.read_text())[1])  # the first is the pom's own


def _copy_from_module(crds: GoCrds, folder: Path) -> None:
    source = download_module(crds.module, crds.version)
    files = sorted(path for path in source.glob(crds.pattern) if path.name != "kustomization.yaml")
    if not files:
        raise BuildFailed(f"{crds.module}@{crds.version} has no file {crds.pattern}")
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        copied = Path(name) / "crds"
        copied.mkdir()
        for path in files:
            shutil.copyfile(path, copied / path.name)
        copied.rename(folder)


def _generate_strimzi(folder: Path) -> None:
    java = find_java()
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        shutil.copy(STRIMZI_POM, Path(name) / "pom.xml")
        _run(["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={name}/libs"], name)
        (Path(name) / "crds").mkdir()
        files = [f"io.strimzi.api.kafka.model.{kind}=crds/{file}.yaml" for file, kind in STRIMZI_KINDS.items()]
        _run([java, "-cp", "libs/*", "io.strimzi.crdgenerator.CrdGenerator", "--yaml", *files], name)
        (Path(name) / "crds").rename(folder)


def find_java() -> str:
    """A java that Strimzi's generator runs on: $JAVA_HOME's, the one on the path, or any installed. Raises BuildFailed."""
    home = os.environ.get("JAVA_HOME")
    installed = sorted(str(path) for path in Path("/usr/lib/jvm").glob("*/bin/java"))
    for java in [*([f"{home}/bin/java"] if home else []), *filter(None, [shutil.which("java")]), *installed]:
        seen = subprocess.run([java, "-version"], capture_output=True, text=True).stderr if Path(java).exists() else ""
        found = re.search(r'version "(\d+)', seen)
        if found and int(found[1]) >= MIN_JAVA:
            return java
    raise BuildFailed(f"Strimzi's CRD generator needs Java {MIN_JAVA} or newer: install one, or set JAVA_HOME to it")


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise BuildFailed(f"{command[0]} is missing: Maven and Java fetch Strimzi's CRDs") from error
    if done.returncode != 0:
        raise BuildFailed(f"{command[0]} could not make Strimzi's CRDs:\n{done.stdout[-2000:]}")
