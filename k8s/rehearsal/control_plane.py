"""A Kubernetes control plane on loopback: etcd, the API server, the controllers and the scheduler, all real, no containers.

Promises: RBAC and the default admission plugins (PodSecurity among them) are on; every part runs under its own identity;
what is started is stopped. The clocks for losing a node are shortened (see CLOCKS). Nothing of it is kept or safe to expose.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from pathlib import Path
from types import TracebackType

import httpx

from k8s.rehearsal.client import Cluster
from prefloop.servers.children import choose_parent_guard
from prefloop.servers.ports import find_port

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
NODE_GRACE_S = 8  # Kubernetes' default is 50: without a heartbeat for so long, a node is not ready
EVICTION_S = 10  # Kubernetes' default is 300: pods without a toleration of their own leave a lost node after it
USERS = {  # user -> group; the names that Kubernetes' own bootstrap roles are bound to
    "admin": "system:masters",
    "kwok": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}


class StartFailed(Exception):
    """A part of the control plane did not start; the text has the end of its log."""


class ControlPlane:
    """The running parts, each with its log in `folder`."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        self._tokens = {user: secrets.token_hex(16) for user in USERS}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = find_port()
        self.url = f"https://127.0.0.1:{self._port}"

    def __enter__(self) -> ControlPlane:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def connect(self) -> Cluster:
        """A client with every right."""
        kubectl = self.binaries / "kubectl"
        return Cluster(kubectl, self.kubeconfig("admin"), self.url, self._tokens["admin"], self._certificate)

    def kubeconfig(self, user: str) -> Path:
        """The file that has a program act as this user."""
        return self.folder / f"{user.replace(':', '-')}.kubeconfig"

    def start_part(self, name: str, *arguments: str, log: str = "") -> subprocess.Popen[bytes]:
        """Start one of the binaries; it is stopped with the rest."""
        log = log or name
        with (self.folder / f"{log}.log").open("ab") as output:
            process = subprocess.Popen(
                [str(self.binaries / name), *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=choose_parent_guard(),
            )
        self._processes[log] = process
        return process

    def stop(self) -> None:
        """Stop every part, the last started first. Idempotent."""
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    @property
    def _certificate(self) -> Path:
        return self.folder / "certificates" / "apiserver.crt"

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [f'{self._tokens[user]},{user},{user},"{group}"' for user, group in USERS.items()]
        (self.folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        (self.folder / "tokens.csv").chmod(0o600)
        key = ["openssl", "genrsa", "-out", str(self.folder / "service-accounts.key"), "2048"]
        subprocess.run(key, check=True, capture_output=True)
        etcd_url = self._start_etcd()
        self._start_api_server(etcd_url)
        for user in USERS:
            self._write_kubeconfig(user)
        self._start_controllers()

    def _start_etcd(self) -> str:
        url, peer_url = f"http://127.0.0.1:{find_port()}", f"http://127.0.0.1:{find_port()}"
        flags = {
            "data-dir": self.folder / "etcd",
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": f"default={peer_url}",
            "unsafe-no-fsync": "true",  # it is thrown away
            "log-level": "warn",
        }
        self.start_part("etcd", *_to_arguments(flags))
        self._wait("etcd", f"{url}/readyz")
        return url

    def _start_api_server(self, etcd_url: str) -> None:
        key = self.folder / "service-accounts.key"
        flags = {
            "etcd-servers": etcd_url,
            "bind-address": "127.0.0.1",
            "secure-port": self._port,
            "cert-dir": self._certificate.parent,
            "token-auth-file": self.folder / "tokens.csv",
            "authorization-mode": "RBAC",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "service-cluster-ip-range": "10.96.0.0/16",
            "endpoint-reconciler-type": "none",  # it would refuse a loopback address
            "allow-privileged": "true",  # so that it is PodSecurity that refuses a privileged pod
            "default-not-ready-toleration-seconds": EVICTION_S,
            "default-unreachable-toleration-seconds": EVICTION_S,
        }
        self.start_part("kube-apiserver", *_to_arguments(flags))
        self._wait("kube-apiserver", f"{self.url}/readyz")

    def _start_controllers(self) -> None:
        name = "kube-controller-manager"
        ports = {name: find_port(), "kube-scheduler": find_port()}
        shared = {"bind-address": "127.0.0.1", "leader-elect": "false"}
        flags = {
            **shared,
            "secure-port": ports[name],
            "kubeconfig": self.kubeconfig(f"system:{name}"),
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self.folder / "service-accounts.key",
            "root-ca-file": self._certificate,
            "node-monitor-period": "1s",
            "node-monitor-grace-period": f"{NODE_GRACE_S}s",
            "horizontal-pod-autoscaler-sync-period": "2s",
        }
        self.start_part(name, *_to_arguments(flags))
        scheduler = {
            **shared,
            "secure-port": ports["kube-scheduler"],
            "kubeconfig": self.kubeconfig("system:kube-scheduler"),
        }
        self.start_part("kube-scheduler", *_to_arguments(scheduler))
        for part, port in ports.items():
            self._wait(part, f"https://127.0.0.1:{port}/healthz")

    def _write_kubeconfig(self, user: str) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "rehearsal", "cluster": {"server": self.url, "certificate-authority": str(self._certificate)}}
            ],
            "users": [{"name": user, "user": {"token": self._tokens[user]}}],
            "contexts": [{"name": "rehearsal", "context": {"cluster": "rehearsal", "user": user}}],
            "current-context": "rehearsal",
        }
        self.kubeconfig(user).write_text(json.dumps(content))
        self.kubeconfig(user).chmod(0o600)

    def _wait(self, part: str, url: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        headers = {"Authorization": f"Bearer {self._tokens['admin']}"}
        with httpx.Client(
            verify=False, headers=headers, timeout=5.0
        ) as client:  # parts sign their certificates themselves
            while self._processes[part].poll() is None and time.monotonic() < deadline:
                try:
                    if client.get(url).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
        tail = (self.folder / f"{part}.log").read_text(errors="replace")[-2000:]
        raise StartFailed(f"{part} did not start; its log ends:\n{tail}")


def _to_arguments(flags: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]
