"""Take nodes away: two drained at once, which the disruption budgets must serialise, and two lost without a word."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

from k8s.rehearsal.availability import Availability
from k8s.rehearsal.client import Answer
from k8s.rehearsal.control_plane import EVICTION_S, NODE_GRACE_S
from k8s.rehearsal.failures import StepFailed
from k8s.rehearsal.nodes import is_ready
from k8s.rehearsal.rehearsal import NAMESPACE, ROLES, Rehearsal
from k8s.rehearsal.rollouts import wait_for_rollouts
from k8s.rehearsal.upgrade import check_kept
from k8s.rehearsal.waiting import wait_until

DRAIN_S = 180
RESCHEDULE_S = 60.0  # beyond what the cluster takes to notice and to evict


def drain(rehearsal: Rehearsal) -> str:
    """Drain two nodes of each role at the same time, through the eviction API; budgets keep their minimum."""
    required = {role: rehearsal.read_required(role) for role in ROLES}
    nodes = sorted({pod["spec"]["nodeName"] for role in ROLES for pod in rehearsal.list_pods(role)[:2]})
    with ExitStack() as stack:
        counts = [stack.enter_context(Availability(rehearsal.cluster, NAMESPACE, role)) for role in ROLES]
        answers = _drain_at_once(rehearsal, nodes)
        wait_for_rollouts(rehearsal.cluster, NAMESPACE)
    for node, answer in answers.items():
        if answer.code != 0:
            raise StepFailed(f"kubectl drain {node}: {answer.err.strip()[-1500:]}")
    check_kept(counts, required)
    num_refused = sum(answer.err.count("Cannot evict pod") for answer in answers.values())
    for node in nodes:
        left = [pod for role in ROLES for pod in rehearsal.list_pods(role) if pod["spec"]["nodeName"] == node]
        if left:
            raise StepFailed(f"{node} is drained and still runs {left[0]['metadata']['name']}")
        rehearsal.cluster.kubectl("uncordon", node)
    kept = ", ".join(f"{count.role} never under {count.lowest}" for count in counts)
    return f"{', '.join(nodes)} drained at once, {num_refused} evictions put off by a budget; {kept}"


def _drain_at_once(rehearsal: Rehearsal, nodes: list[str]) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}

    def drain_one(node: str) -> None:
        flags = ("--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={DRAIN_S}s")
        answers[node] = rehearsal.cluster.try_kubectl("drain", node, *flags, timeout_s=DRAIN_S + 30)

    threads = [threading.Thread(target=drain_one, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def lose_nodes(rehearsal: Rehearsal) -> str:
    """End the heartbeats of a node of each role at once; their pods must run elsewhere within a bound, the nodes unhelped."""
    lost = sorted({rehearsal.find_node(role) for role in ROLES})
    bound_s = NODE_GRACE_S + _longest_toleration_s(rehearsal) + RESCHEDULE_S
    for node in lost:
        rehearsal.fleet.give_own_kubelet(node)
    try:
        noticed_s, took_s = _lose_and_wait(rehearsal, lost, bound_s)
    finally:
        _replace_nodes(rehearsal, lost)
    return f"{', '.join(lost)} lost, seen after {noticed_s:.0f} s, whole again after {took_s:.0f} s (bound {bound_s:.0f} s)"


def _lose_and_wait(rehearsal: Rehearsal, lost: list[str], bound_s: float) -> tuple[float, float]:
    """After how many seconds the loss was seen, and all was whole again. Raises StepFailed, TimedOut."""
    started = time.monotonic()
    for node in lost:
        rehearsal.fleet.lose(node)
    noticed_s = wait_until(
        lambda: not any(_is_alive(rehearsal, node) for node in lost), "the loss to be seen", timeout_s=60
    )
    wait_until(lambda: _all_left(rehearsal, lost), f"every pod to leave {', '.join(lost)}", timeout_s=bound_s)
    wait_for_rollouts(rehearsal.cluster, NAMESPACE, timeout_s=RESCHEDULE_S)
    took_s = time.monotonic() - started
    if took_s > bound_s:
        raise StepFailed(f"whole again only {took_s:.0f} s after {', '.join(lost)} were lost (bound {bound_s:.0f} s)")
    return noticed_s, took_s


def _longest_toleration_s(rehearsal: Rehearsal) -> int:
    pods = [pod for role in (*ROLES, "trainer") for pod in rehearsal.list_pods(role)]
    seconds = [
        each.get("tolerationSeconds", EVICTION_S)
        for pod in pods
        for each in pod["spec"].get("tolerations", [])
        if each.get("key") in {"node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"}
    ]
    return max([EVICTION_S, *map(int, seconds)])


def _is_alive(rehearsal: Rehearsal, node: str) -> bool:
    return is_ready(rehearsal.cluster.get(f"/api/v1/nodes/{node}"))


def _all_left(rehearsal: Rehearsal, nodes: list[str]) -> bool:
    pods = rehearsal.cluster.list_items(f"/api/v1/namespaces/{NAMESPACE}/pods")
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return not any(pod["spec"].get("nodeName") in nodes for pod in staying)


def _replace_nodes(rehearsal: Rehearsal, nodes: list[str]) -> None:
    """What a cloud does: the lost machines' Nodes are deleted (their pods with them), new machines join."""
    for node in nodes:
        rehearsal.cluster.kubectl("delete", "node", node)
    rehearsal.fleet.add_nodes([node for node in rehearsal.fleet.nodes if node.name in nodes])
