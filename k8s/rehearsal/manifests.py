"""The overlay under rehearsal: a copy of k8s/ whose image tags can be changed, rendered by kubectl's own kustomize."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from k8s.rehearsal.client import Cluster, Object

ROOT = Path(__file__).parents[2]
FOLDERS = ("k8s/base", "k8s/components", "k8s/overlays", "docs/dashboards")  # all that an overlay may name
FIRST_TAG = "rehearsal-1"
SECOND_TAG = "rehearsal-2"


class Manifests:
    """One overlay, in a copy that nobody else changes."""

    def __init__(self, folder: Path, overlay: str, source: Path = ROOT) -> None:
        for name in FOLDERS:
            if (source / name).is_dir():
                shutil.copytree(source / name, folder / name)
        guide = source / "k8s" / "README.md"
        self.guide = guide.read_text() if guide.exists() else ""  # for people: it names what they create by hand
        self._overlay = overlay
        self.path = folder / "k8s" / "overlays" / f"{overlay}-rehearsal"
        self.path.mkdir()

    def set_tag(self, tag: str, images: list[str]) -> None:
        """Have every image of these names carry this tag, as an operator's own overlay would."""
        content = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"../{self._overlay}"],
            "images": [{"name": name, "newTag": tag} for name in images],
        }
        (self.path / "kustomization.yaml").write_text(yaml.safe_dump(content))

    def render(self, cluster: Cluster) -> list[Object]:
        """Every object of the overlay."""
        return [each for each in yaml.safe_load_all(cluster.kubectl("kustomize", str(self.path))) if each]


def list_pod_templates(objects: list[Object]) -> list[Object]:
    """The pod templates among objects, with the name of what they are of."""
    found = []
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        template = spec.get("template") if isinstance(spec, dict) else None
        if each["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"} and template:
            found.append({"name": f"{each['kind']}/{each['metadata']['name']}", "spec": template["spec"]})
    return found


def list_images(objects: list[Object]) -> list[str]:
    """The names of prefloop's own images, without tag or digest."""
    names = set()
    for template in list_pod_templates(objects):
        spec = template["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            folder, _, name = str(container["image"]).partition("@")[0].rpartition("/")
            names.add("/".join(filter(None, [folder, name.partition(":")[0]])))
    return sorted(name for name in names if "prefloop" in name)
