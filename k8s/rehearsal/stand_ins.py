"""What an operator of the cluster, or an operator program that does not run here, would have made: Secrets above all.

For each custom resource the Secrets that its operator writes, with their real names and keys; the rest is what the commands
in k8s/README.md create, read from there. `find_missing` then plays the kubelet: what a pod mounts or reads must exist.
"""

from __future__ import annotations

import re

from k8s.rehearsal.client import Cluster, Object
from k8s.rehearsal.manifests import list_pod_templates

COMMAND = re.compile(r"kubectl -n prefloop create (secret generic|configmap) (\S+)((?:[^\n]*\\\n)*[^\n]*)")
POSTGRES_APP = (
    "dbname", "fqdn-jdbc-uri", "fqdn-uri", "host", "jdbc-uri", "password", "pgpass", "port", "uri", "user", "username",
)  # fmt: skip


def read_guide(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """What the guide has a person create by kubectl: (secrets or configmaps, name, keys)."""
    found = {}
    for kind, name, arguments in COMMAND.findall(text):
        keys = re.findall(r"--from-(?:literal|file)=([^=\s]+)", arguments)
        found["configmaps" if kind == "configmap" else "secrets", name] = tuple(keys)
    return [(kind, name, keys) for (kind, name), keys in found.items()]


def list_secrets(objects: list[Object]) -> dict[str, tuple[str, ...]]:
    """The Secrets that operators make for these objects, by name: their keys."""
    secrets: dict[str, tuple[str, ...]] = {}
    prefix = ""
    for each in find_kind(objects, "kafka.strimzi.io", "Kafka"):
        secrets[f"{each['metadata']['name']}-cluster-ca-cert"] = ("ca.crt", "ca.p12", "ca.password")
        prefix = each["spec"].get("entityOperator", {}).get("userOperator", {}).get("secretPrefix", "")
    for each in find_kind(objects, "kafka.strimzi.io", "KafkaUser"):
        secrets[prefix + each["metadata"]["name"]] = _user_keys(each["spec"].get("authentication", {}).get("type", ""))
    for each in find_kind(objects, "postgresql.cnpg.io", "Cluster"):
        secrets[f"{each['metadata']['name']}-app"] = POSTGRES_APP
        secrets[f"{each['metadata']['name']}-ca"] = ("ca.crt", "ca.key")
    return secrets


def find_kind(objects: list[Object], group: str, kind: str) -> list[Object]:
    """The objects of one kind."""
    return [each for each in objects if each["apiVersion"].partition("/")[0] == group and each["kind"] == kind]


def _user_keys(kind: str) -> tuple[str, ...]:
    if kind == "scram-sha-512":
        return ("password", "sasl.jaas.config")
    return ("ca.crt", "user.crt", "user.key", "user.p12", "user.password") if kind == "tls" else ()


def create_stand_ins(cluster: Cluster, namespace: str, objects: list[Object], guide: str) -> int:
    """Create what the guide has a person create, and what operators make of these objects; how many that was."""
    wanted = [*read_guide(guide), *(("secrets", name, keys) for name, keys in list_secrets(objects).items())]
    for kind, name, keys in wanted:
        field = "stringData" if kind == "secrets" else "data"
        body = {"metadata": {"name": name}, field: dict.fromkeys(keys, "stands in")}
        cluster.post(f"/api/v1/namespaces/{namespace}/{kind}", body).raise_for_status()
    scaled = [each["metadata"]["name"] for each in find_kind(objects, "keda.sh", "ScaledObject")]
    for name in scaled:
        autoscaler = _describe_autoscaler(
            cluster.get(f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects/{name}")
        )
        path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
        cluster.post(path, autoscaler).raise_for_status()
    return len(wanted) + len(scaled)


def _describe_autoscaler(scaled: Object) -> Object:
    """The HorizontalPodAutoscaler that KEDA makes of a ScaledObject; it owns it, and reads metrics that only KEDA has."""
    spec, target = scaled["spec"], scaled["spec"]["scaleTargetRef"]
    owner = {
        "apiVersion": scaled["apiVersion"],
        "kind": "ScaledObject",
        "name": scaled["metadata"]["name"],
        "uid": scaled["metadata"]["uid"],
    }
    metric = {"metric": {"name": "s0"}, "target": {"type": "AverageValue", "averageValue": "1"}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": f"keda-hpa-{scaled['metadata']['name']}", "ownerReferences": [owner]},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": target.get("apiVersion", "apps/v1"),
                "kind": target.get("kind", "Deployment"),
                "name": target["name"],
            },
            "minReplicas": max(1, spec.get("minReplicaCount", 0)),
            "maxReplicas": spec.get("maxReplicaCount", 100),
            "metrics": [{"type": "External", "external": metric}],
            "behavior": spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {}),
        },
    }


def find_missing(cluster: Cluster, namespace: str, objects: list[Object]) -> list[str]:
    """What pods of these manifests need and would not find: each as `who: what`."""
    core = f"/api/v1/namespaces/{namespace}"
    kinds = {
        "ConfigMap": f"{core}/configmaps",
        "Secret": f"{core}/secrets",
        "PersistentVolumeClaim": f"{core}/persistentvolumeclaims",
        "ServiceAccount": f"{core}/serviceaccounts",
        "PriorityClass": "/apis/scheduling.k8s.io/v1/priorityclasses",
    }
    found = {
        kind: {each["metadata"]["name"]: set(each.get("data", {})) for each in cluster.list_items(path)}
        for kind, path in kinds.items()
    }
    missing = []
    for template in list_pod_templates(objects):
        for kind, name, keys in list_needs(template["spec"]):
            if name not in found[kind]:
                missing.append(f"{template['name']}: {kind} {name}")
            else:
                missing += [f"{template['name']}: {kind} {name}, key {key}" for key in keys - found[kind][name]]
    return missing


def list_needs(spec: Object) -> list[tuple[str, str, set[str]]]:
    """What a pod cannot start without: (kind, name, keys)."""
    needs: list[tuple[str, str, set[str]]] = []
    if spec.get("serviceAccountName"):
        needs.append(("ServiceAccount", spec["serviceAccountName"], set()))
    if spec.get("priorityClassName", "").startswith("prefloop"):
        needs.append(("PriorityClass", spec["priorityClassName"], set()))
    for volume in spec.get("volumes", []):
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            needs += _list_volume_needs(source)
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for source in container.get("envFrom", []):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source and not source[field].get("optional"):
                    needs.append((kind, source[field]["name"], set()))
        for variable in container.get("env", []):
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                reference = variable.get("valueFrom", {}).get(field)
                if reference and not reference.get("optional"):
                    needs.append((kind, reference["name"], {reference["key"]}))
    return needs


def _list_volume_needs(source: Object) -> list[tuple[str, str, set[str]]]:
    if "persistentVolumeClaim" in source:
        return [("PersistentVolumeClaim", source["persistentVolumeClaim"]["claimName"], set())]
    for field, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
        reference = source.get(field)
        if reference and not reference.get("optional"):
            keys = {item["key"] for item in reference.get("items", [])}
            return [(kind, reference.get("name") or reference["secretName"], keys)]
    return []
