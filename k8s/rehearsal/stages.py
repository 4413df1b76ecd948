"""What kwok does with nodes, pods and volumes: its own stages, with the few changes that a rehearsal needs.

Changed: a pod that is deleted goes within seconds, not at a random time within its grace period; a Job's pod takes four to
six seconds; and an init container named wait-for-… lasts until the Job that it waits for is complete (waits.py says when),
so that a manifest without it is seen to start too early.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

WAITS = ("wait-for-migration", "wait-for-base-model")  # init containers, as the manifests name them
WAITED = "rehearsal.prefloop/waited"  # an annotation of pods: those init containers have ended
WAIT_NAMES = ".spec.initContainers.[].name"

DELAYS_MS = {  # stage -> (at least, at most)
    "pod-create": (200, 800),
    "pod-init-container-running": (200, 600),
    "pod-init-container-completed": (300, 900),
    "pod-ready": (500, 2000),
    "pod-complete": (4000, 6000),
    "pod-delete": (1500, 3000),
    "node-heartbeat-with-lease": (1000, 2000),
}


def write_stages(source: Path, target: Path) -> None:
    """Write the stages of a rehearsal, made from kwok's own in `source`, to one file."""
    stages = [stage for path in sorted(source.glob("*.yaml")) for stage in yaml.safe_load_all(path.read_text())]
    for stage in stages:
        _set_delay(stage)
    completed = next(stage for stage in stages if stage["metadata"]["name"] == "pod-init-container-completed")
    waited = copy.deepcopy(completed)
    waited["metadata"]["name"] = "pod-init-container-waited"
    _require(completed, WAIT_NAMES, "NotIn", WAITS)
    _require(waited, WAIT_NAMES, "In", WAITS)
    _require(waited, f'.metadata.annotations["{WAITED}"]', "Exists")
    target.write_text(yaml.safe_dump_all([*stages, waited]))


def _set_delay(stage: dict[str, Any]) -> None:
    delay = DELAYS_MS.get(stage["metadata"]["name"])
    if delay:
        stage["spec"]["delay"] = {"durationMilliseconds": delay[0], "jitterDurationMilliseconds": delay[1]}


def _require(stage: dict[str, Any], key: str, operator: str, values: tuple[str, ...] = ()) -> None:
    requirement: dict[str, Any] = {"key": key, "operator": operator}
    if values:
        requirement["values"] = list(values)
    stage["spec"]["selector"]["matchExpressions"].append(requirement)
