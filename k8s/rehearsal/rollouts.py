"""Wait until what is installed runs: Deployments, StatefulSets and Jobs, and in which order they came."""

from __future__ import annotations

from datetime import datetime

from k8s.rehearsal.client import Cluster, Object
from k8s.rehearsal.failures import StepFailed
from k8s.rehearsal.waiting import TimedOut, wait_until

ROLLOUT_S = 180.0
WORKLOADS = ("deployments", "statefulsets")


def list_workloads(cluster: Cluster, namespace: str) -> list[Object]:
    """The Deployments and StatefulSets of the namespace."""
    path = f"/apis/apps/v1/namespaces/{namespace}"
    found = []
    for kind in WORKLOADS:
        for each in cluster.list_items(f"{path}/{kind}"):
            found.append({**each, "kind": "Deployment" if kind == "deployments" else "StatefulSet"})
    return found


def wait_for_rollouts(cluster: Cluster, namespace: str, timeout_s: float = ROLLOUT_S) -> int:
    """Return how many workloads there are once all are whole. Raises StepFailed with what is not, and why."""
    try:
        wait_until(lambda: all(map(is_rolled_out, list_workloads(cluster, namespace))), "rollouts", timeout_s=timeout_s)
    except TimedOut as error:
        short = [each["metadata"]["name"] for each in list_workloads(cluster, namespace) if not is_rolled_out(each)]
        raise StepFailed(
            f"not rolled out after {timeout_s:g} s: {', '.join(short)}\n{explain(cluster, namespace)}"
        ) from error
    return len(list_workloads(cluster, namespace))


def is_rolled_out(workload: Object) -> bool:
    """Whether every replica is of the newest template and available, as `kubectl rollout status` has it."""
    status, wanted = workload.get("status", {}), workload["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < workload["metadata"]["generation"]:
        return False
    counts = [status.get(name, 0) for name in ("updatedReplicas", "availableReplicas", "replicas")]
    return counts == [wanted] * 3


def explain(cluster: Cluster, namespace: str) -> str:
    """What the cluster says of pods that do not run: the newest warnings."""
    events = cluster.list_items(f"/api/v1/namespaces/{namespace}/events")
    lines = [f"  {each['involvedObject']['name']}: {each['message']}" for each in events if each["type"] == "Warning"]
    return "\n".join(lines[-8:])


def wait_for_job(cluster: Cluster, namespace: str, name: str, timeout_s: float = ROLLOUT_S) -> datetime:
    """When the Job was complete. Raises StepFailed."""
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}"

    def is_complete() -> bool:
        return "completionTime" in cluster.get(path).get("status", {})

    try:
        wait_until(is_complete, f"Job {name}", timeout_s=timeout_s)
    except TimedOut as error:
        raise StepFailed(f"{error}\n{explain(cluster, namespace)}") from error
    return parse_time(cluster.get(path)["status"]["completionTime"])


def find_available_since(cluster: Cluster, namespace: str, deployment: str) -> datetime:
    """Since when the Deployment is available. Raises StepFailed if it is not."""
    status = cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}").get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "Available" and condition["status"] == "True":
            return parse_time(condition["lastTransitionTime"])
    raise StepFailed(f"{deployment} is not available")


def parse_time(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
