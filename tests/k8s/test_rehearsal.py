"""The rehearsal against small manifests on a real control plane: it holds where they are right, and where one is broken on
purpose the step that is there for it fails. Production's own manifests are rehearsed by `make k8s-rehearsal`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from k8s.rehearsal import disruptions
from k8s.rehearsal.__main__ import STEPS, run_cluster, run_steps
from k8s.rehearsal.binaries import build_binaries, explain_missing_go, find_binaries
from k8s.rehearsal.client import Object
from k8s.rehearsal.manifests import Manifests
from k8s.rehearsal.nodes import Fleet
from k8s.rehearsal.rehearsal import Rehearsal

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A control plane with its simulated nodes, for all tests of this file."""
    binaries = find_binaries()
    if binaries is None and os.environ.get("CI") == "true":
        missing = explain_missing_go()
        assert missing is None, missing
        binaries = build_binaries()
    if binaries is None:
        pytest.skip("the control plane is not built: make k8s-rehearsal ARGS=--build-only")
    with run_cluster(tmp_path_factory.mktemp("cluster"), binaries, print) as started:
        yield started


def describe_small_prefloop() -> dict[str, Object]:
    """The least that a rehearsal looks for, by name: two roles with budgets, and the migration before the gateway."""
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}

    def container(name: str) -> Object:
        return {"name": name, "image": "prefloop/gateway", "securityContext": restricted}

    def template(role: str, **spec: object) -> Object:
        labels = {"app.kubernetes.io/name": role}
        return {
            "metadata": {"labels": labels},
            "spec": {"securityContext": pod, "containers": [container(role)], **spec},
        }

    def deployment(role: str, **spec: object) -> Object:
        labels = {"app.kubernetes.io/name": role}
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": role},
            "spec": {
                "replicas": 2,
                "strategy": strategy,
                "selector": {"matchLabels": labels},
                "template": template(role, **spec),
            },
        }

    def budget(role: str) -> Object:
        selector = {"matchLabels": {"app.kubernetes.io/name": role}}
        spec = {"maxUnavailable": 1, "selector": selector}
        return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": role}, "spec": spec}

    job = {"template": template("migrate", restartPolicy="OnFailure")}
    settings = {"name": "settings", "configMap": {"name": "settings"}}
    return {
        "namespace": {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "prefloop", "labels": RESTRICTED},
        },
        "settings": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}},
        "migrate": {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "migrate"}, "spec": job},
        "gateway": deployment("gateway", initContainers=[container("wait-for-migration")], volumes=[settings]),
        "engine": deployment("engine"),
        "gateway-budget": budget("gateway"),
        "engine-budget": budget("engine"),
    }


def rehearse(fleet: Fleet, folder: Path, objects: dict[str, Object], steps: set[str]) -> list[str]:
    """Which of these steps fail with these objects; `uninstall` is to be among them, so that the next test starts anew."""
    small = folder / "source" / "k8s" / "overlays" / "small"
    small.mkdir(parents=True)
    for name, each in objects.items():
        (small / f"{name}.yaml").write_text(yaml.safe_dump(each))
    resources = {"namespace": "prefloop", "resources": [f"{name}.yaml" for name in objects]}
    (small / "kustomization.yaml").write_text(yaml.safe_dump(resources))
    rehearsal = Rehearsal(fleet, Manifests(folder / "checkout", "small", folder / "source"), [])
    return run_steps(rehearsal, print, steps).failed


def test_all_steps_hold_for_manifests_that_are_right(fleet: Fleet, tmp_path: Path) -> None:
    assert rehearse(fleet, tmp_path, describe_small_prefloop(), STEPS.keys() - {"crds"}) == []


def start_before_the_migration(objects: dict[str, Object]) -> None:
    del objects["gateway"]["spec"]["template"]["spec"]["initContainers"]


def forget_a_config_map(objects: dict[str, Object]) -> None:
    del objects["settings"]


def misspell_a_field(objects: dict[str, Object]) -> None:
    objects["gateway"]["spec"]["minReadySecond"] = 1


def replace_all_at_once(objects: dict[str, Object]) -> None:
    objects["gateway"]["spec"]["strategy"] = {"type": "Recreate"}


def drop_the_policy(objects: dict[str, Object]) -> None:
    objects["namespace"]["metadata"]["labels"] = {}


def stay_on_a_lost_node(objects: dict[str, Object]) -> None:
    stay = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    objects["engine"]["spec"]["template"]["spec"]["tolerations"] = [stay]


@pytest.mark.parametrize(
    ("break_one", "step"),
    [
        (start_before_the_migration, "rollouts"),
        (forget_a_config_map, "install"),
        (misspell_a_field, "install"),
        (replace_all_at_once, "upgrade"),
        (drop_the_policy, "policy"),
        (stay_on_a_lost_node, "lose_nodes"),
    ],
)
def test_each_step_fails_for_the_fault_that_it_is_there_for(
    fleet: Fleet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_one: Callable[[dict[str, Object]], None],
    step: str,
) -> None:
    monkeypatch.setattr(disruptions, "RESCHEDULE_S", 10.0)
    objects = describe_small_prefloop()
    break_one(objects)
    assert rehearse(fleet, tmp_path, objects, {"install", "rollouts", step, "uninstall"}) == [step]
