"""The Pod Security Standard `restricted`, as the API server holds it against a pod."""

from __future__ import annotations

from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def list_violations(spec: dict[str, Any]) -> list[str]:
    """What of a pod's spec the standard refuses; [] if nothing."""
    pod = spec.get("securityContext", {})
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += [f"volume {each['name']}" for each in spec.get("volumes", []) if not each.keys() - {"name"} <= VOLUMES]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = container.get("securityContext", {})
        found += [f"{container['name']}: {problem}" for problem in _list_problems({**pod, **own}, own)]
        found += [f"{container['name']}: hostPort" for port in container.get("ports", []) if "hostPort" in port]
    return found


def _list_problems(context: dict[str, Any], own: dict[str, Any]) -> list[str]:
    capabilities = own.get("capabilities", {})
    checks = {
        "runAsNonRoot": context.get("runAsNonRoot") is True,
        "runAsUser": context.get("runAsUser") != 0,
        "seccompProfile": context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
        "capabilities": "ALL" in capabilities.get("drop", [])
        and set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "privileged": not own.get("privileged"),
        "procMount": own.get("procMount", "Default") == "Default",
    }
    return [name for name, holds in checks.items() if not holds]
