"""Count the pods of a role that can serve, at every change that the API server reports, and keep the lowest count.

A pod counts while its condition Ready is true and it is not being deleted: what a Service would send traffic to.
Counts come from a watch, so no moment between two samples is missed.
"""

from __future__ import annotations

import threading
from types import TracebackType

import httpx

from k8s.rehearsal.client import Cluster, Object
from k8s.rehearsal.nodes import is_ready


class Availability:
    """While entered, follows the pods of `role`; `lowest` is the smallest number that served at once."""

    def __init__(self, cluster: Cluster, namespace: str, role: str) -> None:
        self.role = role
        self._cluster = cluster
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._selector = f"app.kubernetes.io/name={role}"
        self._serving: dict[str, bool] = {}
        self._is_stopped = threading.Event()
        self.lowest = 0
        self.num_changes = 0

    @property
    def now(self) -> int:
        """How many serve at the moment."""
        return sum(self._serving.values())

    def __enter__(self) -> Availability:
        listed = self._cluster.get(self._path, labelSelector=self._selector)
        self._serving = {pod["metadata"]["name"]: _serves(pod) for pod in listed["items"]}
        self.lowest = self.now
        version = str(listed["metadata"]["resourceVersion"])
        self._thread = threading.Thread(target=self._follow, args=(version,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_stopped.set()

    def _follow(self, version: str) -> None:
        try:
            for event in self._cluster.watch(self._path, version, self._selector):
                if self._is_stopped.is_set():
                    return
                pod = event["object"]
                self._serving[pod["metadata"]["name"]] = event["type"] != "DELETED" and _serves(pod)
                self.num_changes += 1
                self.lowest = min(self.lowest, self.now)
        except httpx.HTTPError:
            if not self._is_stopped.is_set():
                self.lowest = -1  # what was not seen is not vouched for


def _serves(pod: Object) -> bool:
    return is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
