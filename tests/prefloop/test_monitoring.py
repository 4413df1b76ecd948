"""A real Prometheus and Alertmanager beside a live gateway: alerts fire and resolve there, and every panel's query is answered."""

import importlib.util
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from runpy import run_path
from typing import Any

import yaml
from prometheus_client import generate_latest, start_http_server

from feedback.database import open_database
from prefloop.servers.prometheus import RULES, Monitoring, run_monitoring
from tests.postgres import miss
from tests.prefloop.live_gateway import LiveGateway, run_live_gateway, wait_until
from tests.prometheus import require_programs
from trainer.run.status.metrics import Metrics as TrainerMetrics

DOCS = RULES.parent
QUICK = {  # rules for a test's patience: the same expressions over shorter times
    "PrefloopEngineDown": {},
    "PrefloopWaitingApproval": {"> 14400": "> 1"},
    "PrefloopChoicesOutboxGrowing": {"> 1000": "> 1000", "> 600": "> 1"},
}
PATIENCE_S = 120.0


def write_quick_rules(path: Path) -> Path:
    """The rules of QUICK as docs/alerts.yml has them, but for their times."""
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    chosen = [rule for rule in rules if rule["alert"] in QUICK]
    assert len(chosen) == len(QUICK)
    for rule in chosen:
        rule.pop("for", None)
        for long, short in QUICK[rule["alert"]].items():
            assert long in rule["expr"]
            rule["expr"] = rule["expr"].replace(long, short)
    path.write_text(json.dumps({"groups": [{"name": "quick", "rules": chosen}]}))
    return path


def read(url: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)


def list_alerts(monitoring: Monitoring) -> set[str]:
    """What Alertmanager has been told of, and not that it is over."""
    return {alert["labels"]["alertname"] for alert in read(f"{monitoring.alertmanager_url}/api/v2/alerts")}


@contextmanager
def watch(
    folder: Path, gateway: LiveGateway, rules: Path = RULES, targets: dict[str, list[str]] | None = None
) -> Iterator[Monitoring]:
    """Prometheus scrapes the gateway, and what else there is, twice a second."""
    every = {"prefloop-gateway": [gateway.url.removeprefix("http://")], **(targets or {})}
    with run_monitoring(Monitoring(folder, every, rules=rules, interval_s=0.5)) as monitoring:
        up = f"{monitoring.url}/api/v1/query"
        wait_until(lambda: read(up, query="prefloop_engine_up == 1")["data"]["result"], "it scrapes", PATIENCE_S)
        yield monitoring


def ask_streamed(gateway: LiveGateway) -> None:
    """A user who is not compared waits for a first token."""
    question = {"model": "default", "messages": [{"role": "user", "content": "How are you?"}], "stream": True}
    gateway.http.post("/v1/chat/completions", json=question, headers={"x-prefloop-user": "bob"}).raise_for_status()


def choose_once(gateway: LiveGateway, user: str) -> None:
    """A user asks and chooses, which is one row of the outbox."""
    question = {"model": "default", "messages": [{"role": "user", "content": f"Question of {user}"}]}
    headers = {"x-prefloop-user": user, "x-prefloop-compare": "always"}
    comparison = gateway.call("POST", "/v1/chat/completions", question, **headers)["comparison"]
    body = {"preferred": "first", "token": comparison["token"]}
    gateway.call("POST", f"/v1/comparisons/{comparison['id']}/choice", body)


@contextmanager
def lock_log(gateway: LiveGateway) -> Iterator[None]:
    """Somebody else writes to the log's database meanwhile, so the relay cannot."""
    database = open_database(f"sqlite:{gateway.state_dir / 'log.db'}")
    try:
        with database.connect().execution_options(sqlite_begin="IMMEDIATE") as connection:
            connection.exec_driver_sql("SELECT 1")  # the transaction begins
            yield
            connection.rollback()
    finally:
        database.dispose()


def test_three_alerts_fire_and_resolve(tmp_path: Path) -> None:
    require_programs()
    with ExitStack() as stack:
        gateway = stack.enter_context(run_live_gateway(tmp_path))
        rules = write_quick_rules(tmp_path / "rules.yml")
        monitoring = stack.enter_context(watch(tmp_path / "prometheus", gateway, rules))
        assert list_alerts(monitoring) == set()

        gateway.engine.stop()
        wait_until(lambda: list_alerts(monitoring) == {"PrefloopEngineDown"}, "EngineDown fires", PATIENCE_S)
        gateway.engine.start()
        wait_until(lambda: list_alerts(monitoring) == set(), "EngineDown resolves", PATIENCE_S)
        wait_until(lambda: gateway.http.get("/readyz").status_code == 200, "the adapter is proven again", PATIENCE_S)

        with lock_log(gateway):
            choose_once(gateway, "ann")
            outbox = {"PrefloopChoicesOutboxGrowing"}
            wait_until(lambda: list_alerts(monitoring) == outbox, "ChoicesOutboxGrowing fires", PATIENCE_S)
        wait_until(lambda: list_alerts(monitoring) == set(), "ChoicesOutboxGrowing resolves", PATIENCE_S)

        gateway.publish(1, gateway.call("GET", "/operator/v1/status")["stable"]["id"])
        rollout = gateway.wait_for_phase("Progressing")
        for start in range(0, 400, 50):
            gateway.let_people_choose(50, likes=1, start=start)
            if gateway.active()["phase"] == "WaitingPromotion":
                break
        waiting = {"PrefloopWaitingApproval"}
        wait_until(lambda: list_alerts(monitoring) == waiting, "WaitingApproval fires", PATIENCE_S)
        gateway.call("POST", f"/operator/v1/rollouts/{rollout}:abort", {"note": "a test"})
        wait_until(lambda: list_alerts(monitoring) == set(), "WaitingApproval resolves", PATIENCE_S)


# Without a series until it has happened, in a world where it does not.
RARE = {
    "ALERTS", "prefloop_not_paired_total", "prefloop_rounds_total", "prefloop_consumer_partition_lag",
    "prefloop_scorer_failures_total", "prefloop_completions_dropped_total",
    "prefloop_engine_lookups_total",  # of engines that DNS names; this one's is listed
}  # fmt: skip
METRIC = re.compile(r"\b((?:prefloop_|process_|vllm:)\w+|ALERTS)")


def list_queries() -> list[tuple[str, str]]:
    """Every query of the dashboards' files, with Grafana's variable filled in."""
    files = sorted((DOCS / "dashboards").glob("*.json"))
    assert [path.stem for path in files] == ["engines", "feedback", "learning", "overview", "rollout"]
    return [
        (f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "1m"))
        for path in files
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]


def test_the_dashboards_are_as_they_are_rendered() -> None:
    rendering = run_path(str(DOCS / "render_dashboards.py"))
    for name in rendering["DASHBOARDS"]:
        text = (DOCS / "dashboards" / f"{name}.json").read_text()
        assert text == rendering["render_dashboard"](name), "run `make docs`"
        dashboard = json.loads(text)
        assert dashboard["uid"] == f"prefloop-{name}" and len({panel["id"] for panel in dashboard["panels"]}) >= 12
        assert all(panel["datasource"]["uid"] == "${datasource}" for panel in dashboard["panels"])
    provider = yaml.safe_load((DOCS / "dashboards" / "provider.yml").read_text())["providers"]
    assert provider[0]["type"] == "file"


def test_the_engines_own_metrics_are_those_of_vllm() -> None:
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        miss("vLLM is not installed")
    source = (Path(vllm.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    exported = set(re.findall(r'name="(vllm:\w+)"', source))
    used = {name for _, query in list_queries() for name in METRIC.findall(query) if name.startswith("vllm:")}
    assert used
    assert {name for name in used if not {name, re.sub("_(total|bucket)$", "", name)} & exported} == set()


def test_every_panels_query_is_answered_by_what_a_live_gateway_and_a_trainer_export(tmp_path: Path) -> None:
    require_programs()
    with ExitStack() as stack:
        gateway = stack.enter_context(run_live_gateway(tmp_path))
        metrics = TrainerMetrics()
        trainer, thread = start_http_server(0, addr="127.0.0.1", registry=metrics.registry)
        stack.callback(thread.join)
        stack.callback(trainer.shutdown)
        other = {"prefloop-trainer": [f"127.0.0.1:{trainer.server_port}"]}
        monitoring = stack.enter_context(watch(tmp_path / "prometheus", gateway, targets=other))
        for user in ("ann", "cid"):
            choose_once(gateway, user)
        ask_streamed(gateway)
        gateway.publish(1, gateway.call("GET", "/operator/v1/status")["stable"]["id"])
        gateway.wait_for_phase("Progressing")
        gateway.let_people_choose(12, likes=1)

        def find_unanswered() -> dict[str, str]:
            """Queries without a series; every one must be answered."""
            unanswered = {}
            for where, query in list_queries():
                answer = read(f"{monitoring.url}/api/v1/query", query=query)
                assert answer["status"] == "success", where
                if not answer["data"]["result"]:
                    unanswered[query] = where
            return unanswered

        def find_surprises() -> dict[str, str]:
            return {
                query: where
                for query, where in find_unanswered().items()
                if not {name for name in METRIC.findall(query) if name in RARE or name.startswith("vllm:")}
            }

        with suppress(AssertionError):
            wait_until(lambda: not find_surprises(), "every query has series", PATIENCE_S)
        assert find_surprises() == {}
        texts = [gateway.http.get("/metrics").text, generate_latest(metrics.registry).decode()]
        exported = {name for text in texts for name in re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)}
        assert RARE - exported == {"ALERTS"}  # Prometheus' own
