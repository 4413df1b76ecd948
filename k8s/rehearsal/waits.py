"""End the init containers that wait for a Job, as their commands would: `prefloop migrate --check` passes once the databases
have the release's schema, so a pod waits for a migration of its own image; the base model is waited for once and for all.

Commands are not run here: without this, a simulated pod would start before the Job it waits for.
"""

from __future__ import annotations

import threading

import httpx

from k8s.rehearsal.client import Cluster, Object
from k8s.rehearsal.stages import WAITED

POLL_S = 0.2
JOBS = {"wait-for-migration": "migrate", "wait-for-base-model": "base-model"}


class Waits:
    """A thread that marks pods whose waits are over, until it is stopped."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._completed: set[tuple[str, str]] = set()  # (Job, image)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Idempotent."""
        self._is_stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_stopped.wait(POLL_S):
            try:
                self._mark_pods()
            except httpx.HTTPError:
                continue  # the API server is busy or going: the next round tries again

    def _mark_pods(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        pods = self._cluster.list_items(path)
        if not pods:
            self._completed.clear()  # uninstalled: the next installation has databases of its own
        for job in self._cluster.list_items(f"/apis/batch/v1/namespaces/{self._namespace}/jobs"):
            if job.get("status", {}).get("succeeded"):
                self._completed.add((job["metadata"]["name"], _first_image(job["spec"]["template"])))
        for pod in pods:
            waits = [each for each in pod["spec"].get("initContainers", []) if each["name"] in JOBS]
            is_marked = WAITED in pod["metadata"].get("annotations", {})
            if waits and not is_marked and all(self._is_over(each) for each in waits):
                patch = {"metadata": {"annotations": {WAITED: "true"}}}
                headers = {"Content-Type": "application/merge-patch+json"}
                self._cluster.http.patch(f"{path}/{pod['metadata']['name']}", json=patch, headers=headers)

    def _is_over(self, container: Object) -> bool:
        job = JOBS[container["name"]]
        if job == "migrate":
            return any(name == job and _tag(image) == _tag(container["image"]) for name, image in self._completed)
        return any(name == job for name, _ in self._completed)


def _first_image(template: Object) -> str:
    return str(template["spec"]["containers"][0]["image"])


def _tag(image: str) -> str:
    """The release that an image is of: what stands behind its name."""
    return image.rpartition("/")[2].partition(":")[2]
