"""Offer the namespace pods that its policy forbids, and one that it allows."""

from __future__ import annotations

import copy
from collections.abc import Callable

from k8s.rehearsal.client import Object
from k8s.rehearsal.failures import StepFailed
from k8s.rehearsal.rehearsal import NAMESPACE, Rehearsal

ALLOWED: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "policy-probe"},
    "spec": {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "probe",
                "image": "prefloop/gateway",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "1Mi"}},
            }
        ],
    },
}


def _privileged(spec: Object) -> None:
    spec["containers"][0]["securityContext"] = {"privileged": True}


def _as_root(spec: Object) -> None:
    spec["securityContext"] |= {"runAsNonRoot": False, "runAsUser": 0}


def _host_path(spec: Object) -> None:
    spec["volumes"] = [{"name": "host", "hostPath": {"path": "/"}}]


def _host_network(spec: Object) -> None:
    spec["hostNetwork"] = True


def _capability(spec: Object) -> None:
    spec["containers"][0]["securityContext"]["capabilities"]["add"] = ["SYS_ADMIN"]


FORBIDDEN: dict[str, Callable[[Object], None]] = {
    "privileged": _privileged,
    "root": _as_root,
    "hostPath": _host_path,
    "hostNetwork": _host_network,
    "SYS_ADMIN": _capability,
}


def check_policy(rehearsal: Rehearsal) -> str:
    """Each forbidden pod is answered 403 by PodSecurity, and the plain one is admitted (neither is kept)."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All"
    plain = rehearsal.cluster.post(path, ALLOWED)
    if plain.status_code != 201:
        raise StepFailed(f"a pod that keeps to the rules is refused: {plain.status_code} {plain.json().get('message')}")
    for name, break_rule in FORBIDDEN.items():
        pod = copy.deepcopy(ALLOWED)
        break_rule(pod["spec"])
        answer = rehearsal.cluster.post(path, pod)
        message = str(answer.json().get("message", ""))
        if answer.status_code != 403 or "violates PodSecurity" not in message:
            raise StepFailed(f"a pod with {name} is answered {answer.status_code}: {message}")
    return f"{', '.join(FORBIDDEN)}: each 403 by PodSecurity; a plain pod is admitted"
