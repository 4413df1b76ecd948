"""Upgrade to another release, and back, while every change of the serving pods is counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from k8s.rehearsal.availability import Availability
from k8s.rehearsal.failures import StepFailed
from k8s.rehearsal.install import apply
from k8s.rehearsal.manifests import FIRST_TAG, SECOND_TAG
from k8s.rehearsal.rehearsal import NAMESPACE, ROLES, Rehearsal
from k8s.rehearsal.rollouts import list_workloads, wait_for_job, wait_for_rollouts


def upgrade(rehearsal: Rehearsal) -> str:
    """Apply the next tag for every image; the disruption budgets' minimum must be kept throughout."""

    def change() -> None:
        _apply_release(rehearsal, SECOND_TAG)
        wait_for_job(rehearsal.cluster, NAMESPACE, "migrate")

    return _watch_change(rehearsal, change, SECOND_TAG)


def roll_back(rehearsal: Rehearsal) -> str:
    """Undo the upgrade as the guide says, and then have the manifests say the same."""

    def change() -> None:
        names = [f"deployment/{each['metadata']['name']}" for each in list_workloads(rehearsal.cluster, NAMESPACE)]
        rehearsal.cluster.kubectl("rollout", "undo", *names, "-n", NAMESPACE)

    found = _watch_change(rehearsal, change, FIRST_TAG)
    _apply_release(rehearsal, FIRST_TAG)
    wait_for_rollouts(rehearsal.cluster, NAMESPACE)
    return found


def _apply_release(rehearsal: Rehearsal, tag: str) -> None:
    rehearsal.manifests.set_tag(tag, rehearsal.images)
    # A Job's template cannot be changed: the guide has the old ones deleted before the next release is applied.
    rehearsal.cluster.kubectl("delete", "job", "migrate", "base-model", "-n", NAMESPACE, "--ignore-not-found")
    apply(rehearsal)
    rehearsal.objects = rehearsal.manifests.render(rehearsal.cluster)


def _watch_change(rehearsal: Rehearsal, change: Callable[[], None], tag: str) -> str:
    required = {role: rehearsal.read_required(role) for role in ROLES}
    with ExitStack() as stack:
        counts = [stack.enter_context(Availability(rehearsal.cluster, NAMESPACE, role)) for role in ROLES]
        change()
        wait_for_rollouts(rehearsal.cluster, NAMESPACE)
    check_kept(counts, required)
    _check_tags(rehearsal, tag)
    kept = ", ".join(f"{count.role} never under {count.lowest} (budget {required[count.role]})" for count in counts)
    return f"{tag} runs; {kept}"


def check_kept(counts: list[Availability], required: dict[str, int]) -> None:
    """Raise StepFailed if a role had fewer pods that serve than its disruption budget keeps."""
    for count in counts:
        if count.lowest < required[count.role]:
            raise StepFailed(
                f"{count.role} fell to {count.lowest} serving pods, its budget keeps {required[count.role]}"
            )


def _check_tags(rehearsal: Rehearsal, tag: str) -> None:
    for workload in list_workloads(rehearsal.cluster, NAMESPACE):
        for container in workload["spec"]["template"]["spec"]["containers"]:
            if "prefloop" in container["image"] and not container["image"].endswith(f":{tag}"):
                raise StepFailed(f"{workload['metadata']['name']} still runs {container['image']}")
