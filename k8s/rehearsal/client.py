"""Talk to the API server: by kubectl as an operator would, and by plain requests where answers are counted or watched."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

BUSY_S = 60.0
Object = dict[str, Any]  # a Kubernetes object as the API server writes it


class KubectlFailed(Exception):
    """kubectl ended with an error; the text is what it said."""


@dataclass(frozen=True)
class Answer:
    """What kubectl said, and the status it ended with."""

    code: int
    out: str
    err: str


class Cluster:
    """One API server: its kubectl, and an HTTP client with the administrator's token."""

    def __init__(self, kubectl: Path, kubeconfig: Path, url: str, token: str, certificate: Path) -> None:
        self._kubectl = kubectl
        self._kubeconfig = kubeconfig
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, verify=str(certificate), timeout=30.0
        )

    def close(self) -> None:
        """Close the HTTP client."""
        self.http.close()

    def try_kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 180.0) -> Answer:
        """Run kubectl; its failure is an answer like any other."""
        command = [str(self._kubectl), f"--kubeconfig={self._kubeconfig}", *arguments]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self._kubeconfig.parent)}
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, timeout=timeout_s, env=environment)
        return Answer(done.returncode, done.stdout, done.stderr)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 180.0) -> str:
        """What kubectl prints. Raises KubectlFailed."""
        answer = self.try_kubectl(*arguments, stdin=stdin, timeout_s=timeout_s)
        if answer.code != 0:
            raise KubectlFailed(f"kubectl {' '.join(arguments)}: {(answer.err or answer.out).strip()[-3000:]}")
        return answer.out

    def get(self, path: str, **parameters: str) -> Object:
        """GET a path of the API; waits while the server is not ready for it. Raises httpx.HTTPStatusError."""
        deadline = time.monotonic() + BUSY_S
        while True:
            answer = self.http.get(path, params=parameters)
            if answer.status_code != 429 or time.monotonic() > deadline:  # as for a kind that was defined a moment ago
                answer.raise_for_status()
                return dict(answer.json())
            time.sleep(float(answer.headers.get("Retry-After", 1)))

    def list_items(self, path: str, selector: str = "") -> list[Object]:
        """The objects of a collection, by label selector."""
        return list(self.get(path, **({"labelSelector": selector} if selector else {}))["items"])

    def post(self, path: str, body: Object) -> httpx.Response:
        """POST an object; the answer may be a refusal."""
        return self.http.post(path, json=body)

    def watch(self, path: str, resource_version: str, selector: str = "") -> Iterator[Object]:
        """Every change of a collection after this version, until the connection is closed."""
        parameters = {"watch": "1", "resourceVersion": resource_version, "labelSelector": selector}
        with self.http.stream("GET", path, params=parameters, timeout=httpx.Timeout(30.0, read=None)) as answer:
            for line in answer.iter_lines():
                yield json.loads(line)
