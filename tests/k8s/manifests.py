"""The overlays as kustomize renders them, and ways to ask what is in them. Nothing here needs a cluster."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("dev", "prod")
WHOLE_MODELS, ROUND_JOBS, TRAINER_NODES, SCORER = "whole-models", "round-jobs", "trainer-nodes", "scorer"
ADDED = (WHOLE_MODELS, ROUND_JOBS, TRAINER_NODES, SCORER)  # prod and one more component each: below tests/
ALL = (*OVERLAYS, *ADDED)
KUBECTL_CACHE = Path.home() / ".cache" / "prefloop" / "kubernetes"

Manifest = dict[str, Any]


def skip_or_fail(reason: str) -> NoReturn:
    """A tool that is missing: a skipped test here, a failure in CI."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    raise AssertionError


@lru_cache
def find_kustomize() -> tuple[str, ...]:
    """A command that renders a folder: kustomize 5, else a kubectl that brings it (1.27 or newer), installed or built."""
    if found := shutil.which("kustomize"):
        return (found, "build")
    for kubectl in filter(None, [shutil.which("kubectl"), *map(str, sorted(KUBECTL_CACHE.glob("*/kubectl")))]):
        seen = subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True)
        if "Kustomize Version: v5" in seen.stdout:
            return (kubectl, "kustomize")
    skip_or_fail("neither kustomize 5 nor a kubectl with it is installed")


@lru_cache
def render_text(overlay: str) -> str:
    """What kustomize makes of an overlay."""
    folder = K8S if overlay in OVERLAYS else Path(__file__).parent
    return kustomize(folder / "overlays" / overlay)


def kustomize(folder: Path) -> str:
    """What kustomize makes of a folder."""
    done = subprocess.run([*find_kustomize(), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@lru_cache
def _read(overlay: str) -> list[Manifest]:
    return parse(render_text(overlay))


def parse(text: str) -> list[Manifest]:
    """The manifests of a rendered text."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C where there is one: ten times as fast
    return [each for each in yaml.load_all(text, Loader=loader) if each]


def assemble(folder: Path, overlay: str, components: Sequence[str], patches: Sequence[Manifest] = ()) -> list[Manifest]:
    """An overlay with components in this order, put together in an empty folder as an operator would."""
    paths = {name: os.path.relpath(K8S / name, folder) for name in (f"overlays/{overlay}", *components)}
    resource, *rest = paths.values()
    text = {"namespace": "prefloop", "resources": [resource], "components": rest, "patches": list(patches)}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return parse(kustomize(folder))


def render(overlay: str) -> list[Manifest]:
    """An overlay's manifests, anew at each call: tests may change them."""
    return copy.deepcopy(_read(overlay))


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    """Those of these kinds, in order."""
    return [each for each in manifests if each["kind"] in kinds]


def find(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one of this kind and name."""
    (found,) = [each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name]
    return found


@dataclass(frozen=True)
class Pod:
    """The pods of a Deployment, a StatefulSet, a Job or a CronJob."""

    owner: Manifest
    spec: dict[str, Any]
    labels: dict[str, str]

    @property
    def name(self) -> str:
        """The owner's name."""
        return str(self.owner["metadata"]["name"])

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of them: those that run before the others and beside them too."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def container(self, name: str) -> dict[str, Any]:
        """The container of this name."""
        (found,) = [each for each in self.containers if each["name"] == name]
        return found


def list_pods(manifests: Sequence[Manifest]) -> list[Pod]:
    """What runs."""
    templates = [(each, each["spec"]["template"]) for each in of_kind(manifests, "Deployment", "StatefulSet", "Job")]
    jobs = of_kind(manifests, "CronJob")
    templates += [(each, each["spec"]["jobTemplate"]["spec"]["template"]) for each in jobs]
    return [Pod(owner, template["spec"], template["metadata"]["labels"]) for owner, template in templates]


def find_pod(manifests: Sequence[Manifest], name: str) -> Pod:
    """The pods of the Deployment or Job of this name."""
    (found,) = [pod for pod in list_pods(manifests) if pod.name == name]
    return found


def read_environment(manifests: Sequence[Manifest], container: dict[str, Any]) -> dict[str, str]:
    """A container's variables, as the kubelet makes them; what a Secret holds reads as its name and key.

    A reference $(NAME) is replaced if NAME stands before it, as the kubelet does.
    """
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            values |= find(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", []):
        if "value" in variable:
            value = variable["value"]
            for name, known in values.items():
                value = value.replace(f"$({name})", known)
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            value = f"{reference['name']}.{reference['key']}"
        values[variable["name"]] = value
    return values


def list_mounted(pod: Pod, container: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each path at which something is mounted, with its volume."""
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    for mount in container.get("volumeMounts", []):
        yield mount["mountPath"], volumes[mount["name"]]
