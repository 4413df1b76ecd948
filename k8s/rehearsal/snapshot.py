"""Everything that an API server holds, to compare one moment with another."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from k8s.rehearsal.client import Cluster, Object

PASSING = {"events", "leases", "componentstatuses", "endpointslices", "endpoints"}  # they come and go by themselves
SETTLED_S = 2.0
SET_BY_SERVER = ("resourceVersion", "managedFields", "generation", "uid", "creationTimestamp")


def list_everything_settled(cluster: Cluster) -> set[str]:
    """The same, once it has not changed for two seconds: a young control plane still makes accounts of its own."""
    last, since = list_everything(cluster), time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        time.sleep(0.3)
        now = list_everything(cluster)
        if now != last:
            last, since = now, time.monotonic()
    return last


def list_everything(cluster: Cluster) -> set[str]:
    """Every object of every kind that can be listed, as `kind.group namespace/name`."""
    found: set[str] = set()
    collections = _list_collections(cluster)
    with ThreadPoolExecutor(8) as pool:
        for name, listed in zip(collections, pool.map(cluster.list_items, collections.values()), strict=True):
            found |= {f"{name} {each['metadata'].get('namespace', '')}/{each['metadata']['name']}" for each in listed}
    return found


def _list_collections(cluster: Cluster) -> dict[str, str]:
    versions = {"": "/api/v1"}
    for group in cluster.get("/apis")["groups"]:
        versions[group["name"]] = f"/apis/{group['preferredVersion']['groupVersion']}"
    found = {}
    for group, path in versions.items():
        for resource in cluster.get(path)["resources"]:
            if "list" in resource["verbs"] and resource["name"] not in PASSING:
                found[f"{resource['name']}.{group}".rstrip(".")] = f"{path}/{resource['name']}"
    return found


def read_desired(cluster: Cluster, objects: list[Object]) -> dict[str, str]:
    """What the server holds of each of these objects, less what it writes itself: equal means nothing was changed."""
    listed: dict[str, Any] = json.loads(
        cluster.kubectl(
            "get", "-f", "-", "-o", "json", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )
    )
    desired = {}
    for each in listed["items"]:
        metadata = {key: value for key, value in each["metadata"].items() if key not in SET_BY_SERVER}
        metadata.pop("annotations", None)  # controllers keep their notes there
        kept = {key: value for key, value in each.items() if key not in {"status", "metadata"}}
        desired[f"{each['kind']}/{each['metadata']['name']}"] = json.dumps(
            {**kept, "metadata": metadata}, sort_keys=True
        )
    return desired
