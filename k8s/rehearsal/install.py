"""Install: the operators' CRDs, then the overlay as its guide says, and what an installation must be true of."""

from __future__ import annotations

import time

from k8s.rehearsal.client import Cluster, KubectlFailed
from k8s.rehearsal.failures import StepFailed
from k8s.rehearsal.manifests import FIRST_TAG, list_images
from k8s.rehearsal.rehearsal import NAMESPACE, Rehearsal
from k8s.rehearsal.rollouts import find_available_since, wait_for_job, wait_for_rollouts
from k8s.rehearsal.snapshot import list_everything, list_everything_settled, read_desired
from k8s.rehearsal.stand_ins import create_stand_ins, find_missing


def apply_crds(rehearsal: Rehearsal) -> str:
    """Install every CRD and wait until the API server serves it."""
    arguments = [f"--filename={path}" for path in rehearsal.crd_files]
    # By the server: some are larger than the annotation in which kubectl keeps what it applied.
    rehearsal.cluster.kubectl("apply", "--server-side", *arguments)
    rehearsal.cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *arguments)
    return f"{len(rehearsal.crd_files)} CRDs established"


def install(rehearsal: Rehearsal) -> str:
    """Apply the overlay; every object is checked against the real schemas, unknown fields refused."""
    cluster, manifests = rehearsal.cluster, rehearsal.manifests
    rehearsal.before = list_everything_settled(cluster)
    manifests.set_tag(FIRST_TAG, [])  # to learn which images there are
    rehearsal.images = list_images(manifests.render(cluster))
    manifests.set_tag(FIRST_TAG, rehearsal.images)
    rehearsal.objects = manifests.render(cluster)
    apply(rehearsal)
    num_stand_ins = create_stand_ins(cluster, NAMESPACE, rehearsal.objects, manifests.guide)
    missing = find_missing(cluster, NAMESPACE, rehearsal.objects)
    if missing:
        raise StepFailed("pods need what is not there:\n  " + "\n  ".join(missing))
    return f"{len(rehearsal.objects)} objects applied, {num_stand_ins} stand in for what people and operators make"


def apply(rehearsal: Rehearsal) -> None:
    """Apply the overlay as it is now. Raises StepFailed with what the API server refused or warned of."""
    answer = rehearsal.cluster.try_kubectl("apply", "--validate=strict", "--kustomize", str(rehearsal.manifests.path))
    if answer.code != 0:
        raise StepFailed(f"kubectl apply: {answer.err.strip()[-3000:]}")
    if "would violate PodSecurity" in answer.err:
        raise StepFailed(f"pods would be refused: {answer.err.strip()[-2000:]}")


def install_again(rehearsal: Rehearsal) -> str:
    """Apply the same a second time: nothing may change."""
    before = read_desired(rehearsal.cluster, rehearsal.objects)
    apply(rehearsal)
    after = read_desired(rehearsal.cluster, rehearsal.objects)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise StepFailed(f"a second apply changed {', '.join(changed)}")
    return f"{len(after)} objects unchanged"


def check_diff(rehearsal: Rehearsal) -> str:
    """`kubectl diff` right after apply must find nothing to change."""
    answer = rehearsal.cluster.try_kubectl("diff", "--kustomize", str(rehearsal.manifests.path))
    if answer.code != 0:
        raise StepFailed(f"kubectl diff (exit {answer.code}):\n{(answer.out or answer.err).strip()[:3000]}")
    return "kubectl diff is empty"


def wait_for_installation(rehearsal: Rehearsal) -> str:
    """Everything is rolled out, and the gateway was not available before the databases were migrated."""
    cluster = rehearsal.cluster
    migrated = wait_for_job(cluster, NAMESPACE, "migrate")
    num_workloads = wait_for_rollouts(cluster, NAMESPACE)
    available = find_available_since(cluster, NAMESPACE, "gateway")
    if available < migrated:
        raise StepFailed(f"the gateway was available at {available:%X}, the migration complete only at {migrated:%X}")
    _check_scheduling(cluster)
    return f"{num_workloads} workloads whole, the gateway {(available - migrated).total_seconds():.0f} s after the migration"


def _check_scheduling(cluster: Cluster) -> None:
    nodes = {each["metadata"]["name"]: each for each in cluster.list_items("/api/v1/nodes")}
    for role in ("gateway", "engine"):
        pods = cluster.list_items(f"/api/v1/namespaces/{NAMESPACE}/pods", f"app.kubernetes.io/name={role}")
        hosts = {pod["spec"]["nodeName"] for pod in pods}
        if len(pods) > 1 and len(hosts) == 1:
            raise StepFailed(f"every pod of {role} runs on {hosts.pop()}: losing it would lose them all")
        gpus = [host for host in hosts if "nvidia.com/gpu" in nodes[host]["status"]["allocatable"]]
        if role == "gateway" and gpus:
            raise StepFailed(f"a gateway occupies a node with accelerators: {gpus[0]}")


def wait_for_namespace_to_go(cluster: Cluster, timeout_s: float = 120.0) -> None:
    """Return once the namespace is gone. Raises StepFailed."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            cluster.kubectl("get", "namespace", NAMESPACE)
        except KubectlFailed:
            return
        time.sleep(0.3)
    raise StepFailed(f"namespace {NAMESPACE} is still there after {timeout_s:g} s")


def uninstall(rehearsal: Rehearsal) -> str:
    """`kubectl delete -k` leaves nothing of prefloop, in its namespace or anywhere."""
    rehearsal.cluster.kubectl(
        "delete", "--kustomize", str(rehearsal.manifests.path), "--ignore-not-found", timeout_s=240
    )
    wait_for_namespace_to_go(rehearsal.cluster)
    deadline = time.monotonic() + 20
    left = list_everything(rehearsal.cluster) - rehearsal.before
    while left and time.monotonic() < deadline:  # volumes go after their claims
        time.sleep(0.5)
        left = list_everything(rehearsal.cluster) - rehearsal.before
    if left:
        raise StepFailed("left behind:\n  " + "\n  ".join(sorted(left)[:20]))
    return "nothing is left, in the namespace or cluster-wide"
