"""What the components bring fits the code: topics and rights, databases and roles, what scales, what is scraped and drawn."""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

import promql_parser
import yaml

from tests.k8s.manifests import ROOT, Manifest, find, of_kind, render
from tests.k8s.processes import find_process, list_processes
from tests.test_alerts import list_exported
from trainer.settings import TrainerSettings


def test_topics_and_their_rights_are_those_of_the_settings() -> None:
    manifests = render("prod")
    settings = find_process(manifests, "trainer").settings
    loaded = TrainerSettings.model_validate({"topic": settings["topic"]})
    topics = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "KafkaTopic")}
    assert topics.keys() == {loaded.topic, loaded.dead_letter_topic}
    kafka = settings["kafka"]
    for spec in topics.values():
        assert (spec["partitions"], spec["replicas"]) == (kafka["partitions"], kafka["replication_factor"])
        assert spec["config"]["min.insync.replicas"] == kafka["min_insync_replicas"] < kafka["replication_factor"]
        assert spec["config"]["retention.ms"] == -1 and spec["config"]["max.message.bytes"] == 4 << 20
    rights = {
        (user["metadata"]["name"], acl["resource"]["name"]): set(acl["operations"])
        for user in of_kind(manifests, "KafkaUser")
        for acl in user["spec"]["authorization"]["acls"]
    }
    assert rights["gateway", loaded.topic] == {"Describe", "Write"} and "Read" in rights["trainer", loaded.topic]
    assert "Write" in rights["trainer", loaded.dead_letter_topic]
    assert "Read" in rights["trainer", "trainer"]  # the consumer group
    users = {user["metadata"]["name"] for user in of_kind(manifests, "KafkaUser")}
    for process in list_processes(manifests):
        if name := process.settings.get("kafka", {}).get("sasl_username"):
            assert name in users and name == process.container["name"]


def test_databases_and_roles_are_those_of_the_cluster() -> None:
    manifests = render("prod")
    cluster = find(manifests, "Cluster", "postgres")["spec"]
    (database,) = of_kind(manifests, "Database")
    roles = {cluster["bootstrap"]["initdb"]["owner"], *(each["name"] for each in cluster["managed"]["roles"])}
    assert cluster["bootstrap"]["initdb"]["database"] == "gateway" and database["spec"]["name"] == "trainer"
    for name in ("gateway", "trainer"):
        url = find_process(manifests, name).settings[name]["database_url"]
        assert re.match(rf"postgresql://{name}:.+@postgres-rw:5432/{name}\?sslmode=verify-full&", url)
        assert name in roles


async def test_every_metric_of_scalers_and_rules_is_exported(tmp_path: Path) -> None:
    exported = await list_exported(tmp_path)
    for query in list_queries(render("prod")):
        promql_parser.parse(query)
        names = set(re.findall(r"(?:prefloop_|vllm:)\w+", query))
        assert names and names <= exported | VLLM, (query, names - exported)


def find_vllm_metrics() -> set[str]:
    """What vLLM calls its metrics, read from its source: importing it takes a quarter of a minute."""
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.submodule_search_locations
    (loggers,) = Path(found.submodule_search_locations[0]).glob("v1/metrics/loggers.py")
    return set(re.findall(r'name="(vllm:\w+)"', loggers.read_text()))


def list_queries(manifests: Sequence[Manifest]) -> list[str]:
    rules = [rule["expr"] for each in of_kind(manifests, "PrometheusRule") for group in each["spec"]["groups"]
             for rule in group["rules"]]  # fmt: skip
    triggers = [trigger for each in of_kind(manifests, "ScaledObject") for trigger in each["spec"]["triggers"]]
    return rules + [trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"]


VLLM = find_vllm_metrics()


def test_scalers_scale_what_is_there_by_what_waits() -> None:
    manifests = render("prod")
    for each in of_kind(manifests, "ScaledObject"):
        assert find(manifests, "Deployment", each["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in find(manifests, "Deployment", each["spec"]["scaleTargetRef"]["name"])["spec"]
    engine = find(manifests, "ScaledObject", "engine")["spec"]["triggers"]
    assert "vllm:num_requests_waiting" in engine[0]["metadata"]["query"]
    lag = find(manifests, "ScaledObject", "trainer")["spec"]["triggers"][0]["metadata"]
    settings = find_process(manifests, "trainer").settings
    assert (lag["topic"], lag["consumerGroup"]) == (settings["topic"], "trainer")


def test_the_rules_are_as_they_are_rendered() -> None:
    rendering = runpy.run_path(str(ROOT / "docs" / "render_monitoring.py"))
    assert rendering["RULES"].read_text() == rendering["render_rules"](), "run `make docs`"
    (rule,) = of_kind(render("prod"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text())


def test_every_dashboard_reaches_grafana() -> None:
    (found,) = [each for each in of_kind(render("prod"), "ConfigMap") if each["metadata"]["name"] == "dashboards"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    files = {path.name: path.read_text() for path in (ROOT / "docs" / "dashboards").glob("*.json")}
    assert found["data"] == files


def test_only_an_operators_key_reads_the_gateways_metrics() -> None:
    manifests = render("prod")
    (endpoint,) = find(manifests, "ServiceMonitor", "gateway")["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "prefloop-keys", "key": "prometheus"}
