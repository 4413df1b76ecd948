"""Prometheus and Alertmanager of this machine: started, stopped, refused; what they see is in tests/prefloop/test_monitoring.py."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefloop.servers.ports import find_port
from prefloop.servers.prometheus import (
    RULES,
    MissingPrometheus,
    Monitoring,
    MonitoringError,
    find_programs,
    list_targets,
    run_monitoring,
)
from prefloop.services import Layout
from tests.prometheus import require_programs

ROOT = Path(__file__).parents[3]


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_one_machines_processes_are_scraped_on_the_ports_that_up_gives_them(tmp_path: Path) -> None:
    assert list_targets(Layout(tmp_path, port=9000, engine_url="http://gpu:8000/")) == {
        "prefloop-gateway": ["127.0.0.1:9000"],
        "prefloop-trainer": ["127.0.0.1:9002"],
        "prefloop-scorer": ["127.0.0.1:9003"],
        "prefloop-engine": ["gpu:8000"],
    }


def test_missing_programs_are_named_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "prometheus").write_text("#!/bin/sh\n")
    (tmp_path / "prometheus").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPrometheus, match=r"promtool and alertmanager not found .*apt-get install"):
        find_programs()


def test_the_command_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "prefloop.servers.prometheus", "--folder", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 1 and done.stderr.startswith("prometheus and promtool and alertmanager not found")
    assert "Traceback" not in done.stderr


def test_the_command_loads_the_rules_and_ends_both_on_a_signal(tmp_path: Path) -> None:
    require_programs()
    port, alertmanager_port = find_port(), find_port()
    argv = [sys.executable, "-m", "prefloop.servers.prometheus", "--folder", str(tmp_path), "--port", str(port)]
    argv += ["--alertmanager-port", str(alertmanager_port), "--gateway-port", str(find_port())]
    with contextlib.ExitStack() as stack:
        command = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        stack.callback(command.terminate)  # else a check that fails would wait for it for ever
        assert command.stdout is not None
        said = [command.stdout.readline() for _ in range(2)]
        assert f"http://127.0.0.1:{port}/alerts" in said[0] and f":{alertmanager_port}" in said[1]
        groups = read(f"http://127.0.0.1:{port}/api/v1/rules")["data"]["groups"]
        assert {group["name"] for group in groups} == {
            group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]
        }
        assert read(f"http://127.0.0.1:{alertmanager_port}/api/v2/status")["versionInfo"]
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 0
    for ended in (port, alertmanager_port):
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{ended}/-/ready", timeout=5)


def test_a_port_that_is_taken_and_rules_that_are_none_are_refused(tmp_path: Path) -> None:
    require_programs()
    (tmp_path / "rules.yml").write_text("groups: [{name: a, rules: [{alert: A, expr: 'sum('}]}]\n")
    broken = Monitoring(tmp_path / "broken", {}, rules=tmp_path / "rules.yml")
    with pytest.raises(MonitoringError, match=r"(?s)prometheus did not start.*rules\.yml"):
        broken.start()
    assert not broken.is_running
    with run_monitoring(Monitoring(tmp_path / "one", {})) as one:
        taken = int(one.url.rpartition(":")[2])
        with pytest.raises(MonitoringError, match=f"port {taken} is taken"):
            Monitoring(tmp_path / "two", {}, port=taken).start()
        assert one.is_running
