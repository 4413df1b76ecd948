"""What the steps of a rehearsal share: the cluster, the nodes, the manifests, and what was found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from k8s.rehearsal.client import Cluster, Object
from k8s.rehearsal.failures import StepFailed
from k8s.rehearsal.manifests import Manifests
from k8s.rehearsal.nodes import Fleet
from k8s.rehearsal.waiting import TimedOut, wait_until

NAMESPACE = "prefloop"
ROLES = ("gateway", "engine")  # what must keep serving
BUDGET_S = 20.0


@dataclass
class Rehearsal:
    """One run: the steps read and write it."""

    fleet: Fleet
    manifests: Manifests
    crd_files: list[Path]
    objects: list[Object] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    before: set[str] = field(default_factory=set)  # what the cluster held before prefloop

    @property
    def cluster(self) -> Cluster:
        """The API server that the nodes belong to."""
        return self.fleet.cluster

    def list_pods(self, role: str) -> list[Object]:
        """The pods of a role that are not going."""
        pods = self.cluster.list_items(f"/api/v1/namespaces/{NAMESPACE}/pods", f"app.kubernetes.io/name={role}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def find_node(self, role: str) -> str:
        """A node that runs a pod of this role."""
        return str(self.list_pods(role)[0]["spec"]["nodeName"])

    def read_required(self, role: str) -> int:
        """How many pods of a role the disruption budget keeps, as its controller counts. Raises StepFailed without one."""
        try:
            wait_until(lambda: self._has_counted(role), f"the disruption budget of {role}", timeout_s=BUDGET_S)
        except TimedOut as error:
            raise StepFailed(str(error)) from error
        required = int(self._read_budget(role)["status"]["desiredHealthy"])
        if required < 1:
            raise StepFailed(f"the disruption budget of {role} keeps no pod at all")
        return required

    def count_wanted(self, role: str) -> int:
        """How many pods of a role its Deployment wants, whether or not there are as many yet."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{role}"
        return int(self.cluster.get(path)["spec"].get("replicas", 1))

    def _has_counted(self, role: str) -> bool:
        """Whether all pods that are wanted are there, and the budget's controller has seen them."""
        counted: int | None = self._read_budget(role)["status"].get("expectedPods")
        return counted == len(self.list_pods(role)) == self.count_wanted(role)

    def _read_budget(self, role: str) -> Object:
        budgets = self.cluster.list_items(f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets")
        for budget in budgets:
            if budget["spec"]["selector"].get("matchLabels", {}).get("app.kubernetes.io/name") == role:
                return budget
        raise StepFailed(f"{role} has no disruption budget")
