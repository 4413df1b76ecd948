"""Every alert can fire: its expression is PromQL, what it reads is exported by our code, and promtool sees it fire and not fire."""

import re
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from prometheus_client import generate_latest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from prefloop.sync.metrics import SyncMetrics
from tests.prometheus import find_promtool
from trainer.run.status.metrics import Metrics as TrainerMetrics

DOCS = Path(__file__).parent.parent / "docs"
CASES = Path(__file__).with_name("alert_cases.yml")
CONTRACT = {
    "prefloop_" + name
    for name in (
        "rollout_info", "rollout_phase", "rollout_fragility_users", "sensor_seen_total", "rollout_weight_ratio",
        "rollout_generation", "rollout_transitions_total", "duels_total", "duel_users", "duel_top_user_ratio",
        "gate_log_e_value", "gate_log_threshold", "gate_estimate", "gate_ci_lower", "gate_ci_upper", "gate_status",
        "srm_log_e_value", "requests_total", "time_to_first_token_seconds_bucket",
        "time_per_output_token_seconds_bucket", "output_tokens_bucket", "refusals_total",
    )
}  # fmt: skip
_FAMILY = re.compile(r"^# TYPE (prefloop_\w+) (\w+)", re.MULTILINE)


def read_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


async def list_exported(tmp_path: Path) -> set[str]:
    """The series of a gateway that has just started, of a trainer, and of the sidecar beside an engine."""
    gateway = {"engines": ["http://127.0.0.1:9"], "access_log": True, "otlp_endpoint": "http://127.0.0.1:9"}
    settings = {"state_dir": tmp_path / "state", "gateway": gateway}
    app = create_app(GatewaySettings.model_validate(settings))
    async with app._run(app._api):
        others = (TrainerMetrics().registry, SyncMetrics().registry)
        texts = [app.context.metrics.render(), *(generate_latest(registry) for registry in others)]
    names: set[str] = set()
    for name, kind in (match for text in texts for match in _FAMILY.findall(text.decode())):
        names |= {name} if kind != "histogram" else {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return names


async def test_every_metric_of_an_alert_is_exported(tmp_path: Path) -> None:
    exported = await list_exported(tmp_path)
    used = {name for rule in read_rules() for name in re.findall(r"prefloop_\w+", rule["expr"])}
    assert used and used <= exported, used - exported


async def test_every_metric_of_the_operators_page_is_exported(tmp_path: Path) -> None:
    exported = await list_exported(tmp_path)
    page = (DOCS / "operations.md").read_text()
    named = set(re.findall(r"`(prefloop_\w+)", page))
    named -= {name for name in named if f"{name}_bucket" in exported}
    assert named and named <= exported, named - exported


async def test_every_metric_of_the_rollouts_specification_is_exported(tmp_path: Path) -> None:
    assert await list_exported(tmp_path) >= CONTRACT


def test_every_alert_is_promql_with_a_severity_and_a_sentence() -> None:
    names = [rule["alert"] for rule in read_rules()]
    assert len(set(names)) == len(names)
    for rule in read_rules():
        promql_parser.parse(rule["expr"])
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith((".", "?"))


def test_labels_of_alerts_are_those_that_the_code_writes() -> None:
    from gateway.engines.discovery import OUTCOMES
    from gateway.engines.engine import BREAKER_PHASES
    from gateway.rollout.pure.machine import ABORTING, SPLIT
    from gateway.rollout.pure.transitions import Reason
    from gateway.telemetry.rollout_metrics import PHASES, STATUSES

    known = {
        "phase": {*PHASES, *BREAKER_PHASES}, "status": {*STATUSES}, "arm": {"stable", "canary"}, "code": {"5.."},
        "gate": {SPLIT}, "to": {ABORTING}, "reason": {Reason.NO_DATA.value}, "outcome": {*OUTCOMES},
    }  # fmt: skip
    used = [pair for rule in read_rules() for pair in re.findall(r'(\w+)=~?"([^"]+)"', rule["expr"])]
    assert used and all(value in known[label] for label, value in used), used


def test_promtool_sees_every_alert_fire_and_not_fire() -> None:
    cases = [check for test in yaml.safe_load(CASES.read_text())["tests"] for check in test["alert_rule_test"]]
    fires = {check["alertname"] for check in cases if check["exp_alerts"]}
    rests = {check["alertname"] for check in cases if not check["exp_alerts"]}
    assert fires == rests == {rule["alert"] for rule in read_rules()}
    promtool = find_promtool()
    done = subprocess.run([promtool, "test", "rules", str(CASES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([promtool, "check", "rules", str(DOCS / "alerts.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operators_page_says_of_every_alert_what_to_do() -> None:
    page = (DOCS / "operations.md").read_text()
    rows = dict(re.findall(r"^\| (Prefloop\w+)(?:, (page))? \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE))
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in read_rules()}
    assert {name: severity or "ticket" for name, severity in rows.items()} == severities
