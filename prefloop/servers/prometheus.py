"""Prometheus and Alertmanager on loopback, beside the processes of this machine, with prefloop's rules loaded. `make prometheus`.

Debian's binaries, or those on PATH. Promises: what was measured is kept in the folder over restarts. Asks gateway, trainer, scorer
and engine without a key, which programs on the same machine may; who is told of alerts, an Alertmanager file of yours says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefloop.servers.children import choose_parent_guard, is_open
from prefloop.servers.ports import find_port
from prefloop.services import Layout

RULES = Path(__file__).parents[2] / "docs" / "alerts.yml"
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0


class MonitoringError(Exception):
    """A program could not be started, or ended: its own words."""


class MissingPrometheus(MonitoringError):
    """There is no Prometheus or Alertmanager here: the message says how to get them."""


@dataclass(frozen=True)
class Programs:
    """Where they are."""

    prometheus: str
    promtool: str
    alertmanager: str


def find_programs() -> Programs:
    """Those on PATH; Debian calls Alertmanager prometheus-alertmanager. Raises MissingPrometheus."""
    found = [shutil.which("prometheus"), shutil.which("promtool")]
    found.append(shutil.which("prometheus-alertmanager") or shutil.which("alertmanager"))
    missing = [
        name for name, path in zip(("prometheus", "promtool", "alertmanager"), found, strict=True) if path is None
    ]
    if missing:
        raise MissingPrometheus(
            f"{' and '.join(missing)} not found"
            " (Debian: apt-get install --no-install-recommends prometheus prometheus-alertmanager)"
        )
    return Programs(*(path or "" for path in found))


@dataclass(frozen=True)
class _Program:
    """One of the two processes, with its page on a port of 127.0.0.1."""

    name: str
    argv: Sequence[str]
    port: int


class Monitoring:
    """Both servers, with everything they write under `folder`.

    targets: addresses (host:port) to scrape, by job. rules: a file of rules. alertmanager: a configuration of yours, else alerts are
    shown and sent to nobody. Ports: 0 takes a free one. interval_s: between scrapes, and between looks at the rules.
    Raises MissingPrometheus.
    """

    def __init__(
        self, folder: Path, targets: Mapping[str, Sequence[str]], *, rules: Path = RULES,
        alertmanager: Path | None = None, port: int = 0, alertmanager_port: int = 0, interval_s: float = 5.0,
    ) -> None:  # fmt: skip
        self.folder = folder.resolve()
        self._programs = find_programs()
        self._targets, self._rules, self._interval_s = targets, rules.resolve(), interval_s
        self._routes = alertmanager
        self._port, self._alertmanager_port = port or find_port(), alertmanager_port or find_port()
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Prometheus' page."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def alertmanager_url(self) -> str:
        """Alertmanager's page."""
        return f"http://127.0.0.1:{self._alertmanager_port}"

    @property
    def is_running(self) -> bool:
        """Whether both processes live."""
        return bool(self._running) and all(process.poll() is None for process in self._running)

    def start(self) -> None:
        """Start both, and return when they answer. Raises MonitoringError with the end of the log of one that does not."""
        assert not self._running, "it runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_files()
        try:
            for program in self._list_programs():
                if is_open(program.port):
                    raise MonitoringError(f"port {program.port} is taken: stop what listens there, or choose another")
                self._running.append(self._launch(program))
                self._wait_until_ready(program, self._running[-1])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End both in order, by force after 30 s. Idempotent."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running = []

    def _list_programs(self) -> list[_Program]:
        alertmanager = [
            self._programs.alertmanager, f"--config.file={self._routes or self.folder / 'alertmanager.json'}",
            f"--storage.path={self.folder / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{self._alertmanager_port}",
            "--cluster.listen-address=",
        ]  # fmt: skip
        prometheus = [
            self._programs.prometheus, f"--config.file={self.folder / 'prometheus.json'}",
            f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{self._port}",
        ]  # fmt: skip
        return [
            _Program("alertmanager", alertmanager, self._alertmanager_port),
            _Program("prometheus", prometheus, self._port),
        ]

    def _write_files(self) -> None:
        """JSON, which is YAML too."""
        interval = f"{round(self._interval_s * 1000)}ms"
        prometheus = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(self._rules)],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{self._alertmanager_port}"]}]}]
            },
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in self._targets.items()
            ],
        }
        silent = {"route": {"receiver": "nobody", "group_by": ["alertname"]}, "receivers": [{"name": "nobody"}]}
        for name, config in (("prometheus", prometheus), ("alertmanager", silent)):
            (self.folder / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")

    def _launch(self, program: _Program) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program.name}.log").open("ab") as log:
            return subprocess.Popen(
                program.argv, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=choose_parent_guard(),
            )  # fmt: skip

    def _wait_until_ready(self, program: _Program, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _is_ready(program.port):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / f"{program.name}.log").read_text(errors="replace")[-2000:]
                raise MonitoringError(f"{program.name} did not start on port {program.port}:\n{tail}")
            time.sleep(0.05)


@contextlib.contextmanager
def run_monitoring(monitoring: Monitoring) -> Iterator[Monitoring]:
    """Both servers run as long as the block. Raises MonitoringError."""
    monitoring.start()
    try:
        yield monitoring
    finally:
        monitoring.stop()


def list_targets(layout: Layout) -> dict[str, list[str]]:
    """What one machine's prefloop exports, by job."""
    urls = {
        "prefloop-gateway": layout.gateway_url,
        "prefloop-trainer": layout.trainer_url,
        "prefloop-scorer": layout.scorer_url,
        "prefloop-engine": layout.engine_address,
    }
    return {job: [url.partition("://")[2].rstrip("/")] for job, url in urls.items()}


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main(argv: Sequence[str] | None = None) -> None:
    """Run Prometheus and Alertmanager until Ctrl-C, beside `make demo` or `prefloop up`."""
    parser = argparse.ArgumentParser(prog="make prometheus", description=main.__doc__)
    state_dir = Path(os.environ.get("PREFLOOP_STATE_DIR", "state"))
    parser.add_argument("--folder", type=Path, default=state_dir / "prometheus", help="where its data is kept")
    parser.add_argument("--port", type=int, default=9090, help="Prometheus'")
    parser.add_argument("--alertmanager-port", type=int, default=9093)
    parser.add_argument("--gateway-port", type=int, default=8800, help="as of `prefloop up --port`")
    parser.add_argument("--engine", default="", help="as of `prefloop up --engine`")
    parser.add_argument("--rules", type=Path, default=RULES, help="a file of rules")
    parser.add_argument("--alertmanager", type=Path, help="an Alertmanager configuration: who is told of alerts")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the shell that started it has its jobs ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    layout = Layout(state_dir, port=arguments.gateway_port, engine_url=arguments.engine)
    try:
        monitoring = Monitoring(
            arguments.folder, list_targets(layout), rules=arguments.rules, alertmanager=arguments.alertmanager,
            port=arguments.port, alertmanager_port=arguments.alertmanager_port,
        )  # fmt: skip
        with run_monitoring(monitoring):
            print(f"Prometheus runs on {monitoring.url}, its alerts are on {monitoring.url}/alerts")
            print(f"Alertmanager runs on {monitoring.alertmanager_url}. Ctrl-C stops both.", flush=True)
            while monitoring.is_running:
                time.sleep(0.2)
            raise MonitoringError(f"a server ended: see {monitoring.folder}/*.log")
    except KeyboardInterrupt:
        pass
    except MonitoringError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
