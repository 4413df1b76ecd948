"""Scale: by hand where nothing else scales, and by the autoscaler where one is set."""

from __future__ import annotations

from k8s.rehearsal.client import Object
from k8s.rehearsal.failures import StepFailed
from k8s.rehearsal.rehearsal import NAMESPACE, ROLES, Rehearsal
from k8s.rehearsal.rollouts import explain, wait_for_rollouts
from k8s.rehearsal.stand_ins import find_kind
from k8s.rehearsal.waiting import TimedOut, wait_until

HPA_S = 40.0


def scale(rehearsal: Rehearsal) -> str:
    """Each role gets one more pod, and back; an autoscaler brings what it owns back to its minimum by itself."""
    autoscalers = {each["spec"]["scaleTargetRef"]["name"]: each for each in _list_autoscalers(rehearsal)}
    done = []
    for role in ROLES:
        if role in autoscalers:
            done.append(_try_autoscaler(rehearsal, role, autoscalers[role]))
        else:
            done.append(_scale_by_hand(rehearsal, role))
    return ", ".join([*done, *_describe_scaled_objects(rehearsal)])


def _scale_by_hand(rehearsal: Rehearsal, role: str) -> str:
    before = len(rehearsal.list_pods(role))
    for number in (before + 1, before):
        rehearsal.cluster.kubectl("scale", f"deployment/{role}", "-n", NAMESPACE, f"--replicas={number}")
        wait_for_rollouts(rehearsal.cluster, NAMESPACE)
        if len(rehearsal.list_pods(role)) != number:
            raise StepFailed(f"{role} was scaled to {number} and has {len(rehearsal.list_pods(role))} pods")
    return f"{role} {before} to {before + 1} and back"


def _try_autoscaler(rehearsal: Rehearsal, role: str, autoscaler: Object) -> str:
    lowest = autoscaler["spec"]["minReplicas"]
    rehearsal.cluster.kubectl("scale", f"deployment/{role}", "-n", NAMESPACE, f"--replicas={lowest - 1}")
    try:
        took_s = wait_until(
            lambda: rehearsal.count_wanted(role) >= lowest, f"the autoscaler of {role}", timeout_s=HPA_S
        )
    except TimedOut as error:
        raise StepFailed(f"{error}\n{explain(rehearsal.cluster, NAMESPACE)}") from error
    wait_for_rollouts(rehearsal.cluster, NAMESPACE)
    return f"{role} {lowest - 1} back to {lowest} by its autoscaler after {took_s:.0f} s"


def _list_autoscalers(rehearsal: Rehearsal) -> list[Object]:
    return rehearsal.cluster.list_items(f"/apis/autoscaling/v2/namespaces/{NAMESPACE}/horizontalpodautoscalers")


def _describe_scaled_objects(rehearsal: Rehearsal) -> list[str]:
    scaled = find_kind(rehearsal.objects, "keda.sh", "ScaledObject")
    for each in scaled:
        target = each["spec"]["scaleTargetRef"]
        kind = target.get("kind", "Deployment").lower()
        rehearsal.cluster.kubectl("get", kind, target["name"], "-n", NAMESPACE)  # what it names must be there
    return [f"ScaledObject {each['metadata']['name']} accepted" for each in scaled]
