"""Simulated nodes: real Node objects, with kwok in the place of each kubelet.

kwok gives nodes their heartbeats and takes pods through the states that a kubelet reports; it starts nothing, so images,
probes, commands and preStop hooks are not tried out here. One node has a kwok of its own: killing that one loses the node.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from k8s.rehearsal.client import Cluster, Object
from k8s.rehearsal.control_plane import ControlPlane
from k8s.rehearsal.stages import write_stages
from k8s.rehearsal.waiting import wait_until

KUBELET = "rehearsal.prefloop/kubelet"  # which kwok a node belongs to
SHARED = "shared"
LEASE_S = 4  # kwok renews a node's lease within it; a kubelet's is 40 s


STORAGE_CLASS: Object = {  # kwok's stages make a volume for each claim of this class
    "metadata": {"name": "kwok-volume", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "kwok.x-k8s.io/volume",
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
}


@dataclass(frozen=True)
class Node:
    """What a node offers to the scheduler."""

    name: str
    zone: str
    num_gpus: int = 0
    cpus: int = 32
    memory_gib: int = 256


NODES = [
    *(Node(f"gpu-{zone}{number}", zone, num_gpus=8, cpus=96, memory_gib=1024) for zone in "abc" for number in (1, 2)),
    *(Node(f"cpu-{zone}{number}", zone) for zone in "abc" for number in (1, 2)),
]


@dataclass
class Fleet:
    """The nodes of a cluster and the processes that keep them alive."""

    control_plane: ControlPlane
    cluster: Cluster
    nodes: list[Node] = field(default_factory=lambda: list(NODES))
    kubelets: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        """Register every node, and return when all are ready. Raises TimedOut."""
        self.cluster.post("/apis/storage.k8s.io/v1/storageclasses", STORAGE_CLASS).raise_for_status()
        write_stages(self.control_plane.binaries / "stages", self._stages)
        self.start_kubelet(SHARED)
        self.add_nodes(self.nodes)

    def add_nodes(self, nodes: list[Node]) -> None:
        """Register these nodes, and return when all that there are, are ready. Raises TimedOut."""
        for node in nodes:
            self.cluster.post("/api/v1/nodes", describe_node(node)).raise_for_status()
        wait_until(self._are_ready, "every simulated node to be ready", timeout_s=60)

    def give_own_kubelet(self, node: str) -> None:
        """Hand a node from the shared kwok to one of its own, so that it can be lost alone."""
        self.start_kubelet(node)
        self.cluster.kubectl("label", "node", node, "--overwrite", f"{KUBELET}={node}")

    def start_kubelet(self, name: str) -> None:
        """Start a kwok for the nodes with this label value."""
        self.kubelets[name] = self.control_plane.start_part(
            "kwok",
            f"--kubeconfig={self.control_plane.kubeconfig('kwok')}",
            f"--manage-nodes-with-label-selector={KUBELET}={name}",
            f"--node-lease-duration-seconds={LEASE_S}",
            f"--config={self._stages}",
            log=f"kwok-{name}",
        )

    def lose(self, node: str) -> None:
        """End a node's heartbeats without a word, as a power cut does; its pods report nothing any more."""
        kubelet = self.kubelets.pop(node)
        kubelet.kill()
        kubelet.wait()

    @property
    def _stages(self) -> Path:
        return self.control_plane.folder / "stages.yaml"

    def _are_ready(self) -> bool:
        nodes = self.cluster.list_items("/api/v1/nodes")
        return len(nodes) == len(self.nodes) and all(is_ready(node) for node in nodes)


def is_ready(thing: Object) -> bool:
    """Whether a node's or a pod's condition Ready is true."""
    conditions = thing.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def describe_node(node: Node) -> Object:
    """The Node object that a kubelet would register."""
    offered = {"cpu": str(node.cpus), "memory": f"{node.memory_gib}Gi", "ephemeral-storage": "1Ti", "pods": "110"}
    labels = {
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "topology.kubernetes.io/region": "rehearsal",
        "topology.kubernetes.io/zone": node.zone,
        KUBELET: SHARED,
    }
    taints = []
    if node.num_gpus:
        offered["nvidia.com/gpu"] = str(node.num_gpus)
        labels |= {"nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
        taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {"taints": taints},
        "status": {"allocatable": offered, "capacity": offered},
    }
