"""The components that change how the trainer runs: a Job for each round, nodes beside it, a scorer in its pod."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.arrows import Arrow, list_required
from tests.k8s.manifests import (
    K8S,
    ROUND_JOBS,
    SCORER,
    TRAINER_NODES,
    Manifest,
    assemble,
    find,
    find_pod,
    list_mounted,
    of_kind,
    render,
)
from tests.k8s.processes import find_process
from tests.k8s.test_network_policies import list_faults
from tests.k8s.test_schemas import NEWEST, OLDEST, find_builtin_schema, is_custom
from trainer.main import STOPPED
from trainer.parts import TEMPORARY

GPU = "nvidia.com/gpu"


def list_names(manifests: list[Manifest]) -> set[tuple[str, str]]:
    return {(each["kind"], re.sub(r"-[a-z0-9]{10}$", "", each["metadata"]["name"])) for each in manifests}


def read_patches(heading: str) -> list[dict[str, Any]]:
    """The patches that a section of the README tells operators to add."""
    section = (K8S / "README.md").read_text().partition(f"### {heading}")[2].partition("\n### ")[0]
    (block,) = re.findall(r"^ {4}patches:\n(?: {5,}.*\n)+", section, flags=re.MULTILINE)
    return list(yaml.safe_load(textwrap.dedent(block))["patches"])


def test_a_rounds_job_is_the_trainers_pod_without_what_listens() -> None:
    before = find_pod(render("prod"), "trainer").spec
    after = find_pod(render(ROUND_JOBS), "trainer").spec
    container = before["containers"][0]
    assert container.pop("ports") and after["containers"][0].pop("ports", []) == []
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container.pop(probe)
    container["command"] = ["python", "-m", "trainer.main", "--once"]
    assert after == {**before, "restartPolicy": "Never"}
    assert container["resources"]["limits"][GPU] == "1"


def test_rounds_jobs_come_one_at_a_time_and_are_tried_again() -> None:
    spec = find(render(ROUND_JOBS), "CronJob", "trainer")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid" and spec["timeZone"] == "Etc/UTC"
    job = spec["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 5 and job["ttlSecondsAfterFinished"] > 0
    evicted, temporary = job["podFailurePolicy"]["rules"]
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    codes = temporary["onExitCodes"]
    assert temporary["action"] == "Ignore" and codes == {
        "containerName": "trainer",
        "operator": "In",
        "values": [TEMPORARY],
    }
    assert TEMPORARY == 75 and STOPPED not in codes["values"] and 1 not in codes["values"]
    assert job["activeDeadlineSeconds"] >= 12 * 3600  # what is not counted ends some time


def test_nothing_is_left_of_the_trainer_that_stayed() -> None:
    prod, manifests = render("prod"), render(ROUND_JOBS)
    gone, new = list_names(prod) - list_names(manifests), list_names(manifests) - list_names(prod)
    assert new == {("CronJob", "trainer")}
    assert gone == {
        ("Deployment", "trainer"),
        ("Service", "trainer"),
        ("ServiceMonitor", "trainer"),
        ("ScaledObject", "trainer"),
        ("TriggerAuthentication", "kafka"),
        ("KafkaUser", "keda"),
        ("Secret", "keda-kafka"),
        ("NetworkPolicy", "keda-to-kafka"),
        ("NetworkPolicy", "prometheus-to-trainer"),
    }
    assert find_process(manifests, "gateway").settings["gateway"]["trainer_url"] == ""
    into = {arrow for arrow in list_required(manifests) if arrow.target == "trainer"}
    assert into == set() and list_faults(manifests) == (set(), set())
    commands = (K8S / "README.md").read_text().partition("### round-jobs")[2].partition("\n### ")[0]
    for kind, name in gone:  # apply leaves what the manifests no longer name
        short = {"Deployment": "deploy", "Service": "svc"}.get(kind, kind.lower())
        assert f"{short}/{name} " in commands, (kind, name)


def test_a_rounds_job_waits_in_kueues_queue_by_the_readmes_patch(tmp_path: Path) -> None:
    manifests = assemble(tmp_path, "prod", ["components/round-jobs"], read_patches("round-jobs"))
    template = find(manifests, "CronJob", "trainer")["spec"]["jobTemplate"]
    assert template["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "prefloop"
    assert template["spec"]["suspend"] is True and template["spec"]["template"]["spec"]["containers"]


def test_a_round_has_as_many_nodes_as_the_trainer_waits_for() -> None:
    manifests = render(TRAINER_NODES)
    node, trainer = find_process(manifests, "trainer-node"), find_process(manifests, "trainer")
    spec = find(manifests, "StatefulSet", "trainer-node")["spec"]
    assert spec["replicas"] == trainer.settings["trainer"]["num_nodes"] - 1 == 1
    assert spec["podManagementPolicy"] == "Parallel"
    assert node.container["command"] == ["python", "-m", "trainer.node"]
    assert node.settings["node"]["rendezvous"] == trainer.settings["trainer"]["rendezvous"]
    for same in ("image", "resources"):
        assert node.container[same] == trainer.container[same] != {}
    assert node.container["resources"]["limits"][GPU] == "1"


def test_nodes_see_the_trainers_rounds_and_base_and_nothing_else_of_it() -> None:
    manifests = render(TRAINER_NODES)
    node, trainer = find_process(manifests, "trainer-node"), find_process(manifests, "trainer")
    there, here = dict(list_mounted(trainer.pod, trainer.container)), dict(list_mounted(node.pod, node.container))
    rounds = node.settings["rounds_dir"]
    assert rounds == f"{trainer.settings['state_dir']}/rounds"
    for path in (rounds, "/models"):
        assert here[path] == there[path]
        claim = find(manifests, "PersistentVolumeClaim", here[path]["persistentVolumeClaim"]["claimName"])
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # pods of several machines
    assert node.settings["base_model"] == trainer.settings["base_model"]
    assert "emptyDir" in here["/var/lib/prefloop"] and here["/dev/shm"] == there["/dev/shm"]
    assert not [volume for volume in node.pod.spec["volumes"] if "secret" in volume]
    assert not [each for each in node.container["env"] if "valueFrom" in each]


def test_nodes_meet_at_a_headless_service_whether_the_trainer_is_ready_or_not() -> None:
    manifests = render(TRAINER_NODES)
    spec = find(manifests, "Service", "trainer-rendezvous")["spec"]
    assert spec["clusterIP"] == "None" and spec["publishNotReadyAddresses"] is True
    own = {each for each in list_required(manifests) if "trainer-node" in (each.source, each.target)}
    assert {arrow for arrow in own if arrow.target != "dns"} == {
        Arrow("trainer-node", "trainer", 29400),
        *(
            Arrow(source, target, port)
            for source, target in (("trainer-node", "trainer"), ("trainer", "trainer-node"), ("trainer-node",) * 2)
            for port in (32768, 60999)
        ),
    }
    policy = find(manifests, "NetworkPolicy", "trainer-and-nodes")["spec"]
    policy["ingress"][0]["ports"][1]["endPort"] = 65535
    assert Arrow("trainer-node", "trainer", 61000) not in list_faults(manifests)[1]  # it is not let out there
    del policy["ingress"][0]["ports"][1]
    assert Arrow("trainer-node", "trainer", 32768) in list_faults(manifests)[0]


def test_rounds_on_several_machines_may_be_jobs(tmp_path: Path) -> None:
    manifests = assemble(tmp_path, "prod", ["components/trainer-nodes", "components/round-jobs"])
    assert list_faults(manifests) == (set(), set())
    job = find_process(manifests, "trainer")
    assert [port["containerPort"] for port in job.container["ports"]] == [29400]
    assert job.settings["trainer"]["num_nodes"] == 2
    assert job.settings["trainer"]["rendezvous"].partition(":")[0] == "trainer-rendezvous"


def test_the_scorer_reads_the_trainers_disk_in_the_trainers_pod() -> None:
    manifests = render(SCORER)
    pod = find_pod(manifests, "trainer")
    assert [each["name"] for each in pod.spec["containers"]] == ["trainer", "scorer"]  # patches know the first
    scorer, trainer = find_process(manifests, "scorer"), find_process(manifests, "trainer")
    (state,) = [each for each in scorer.container["volumeMounts"] if each["name"] == "state"]
    assert state["readOnly"] is True and scorer.settings["reward_dir"].startswith(f"{state['mountPath']}/")
    assert state["mountPath"] == str(trainer.settings["state_dir"])
    assert scorer.settings["base_model"] == trainer.settings["base_model"]
    for same in ("image", "resources"):
        assert scorer.container[same] == trainer.container[same] != {}
    assert "readinessProbe" not in scorer.container  # without it asks are random, and the trainer works on
    assert not [path for path, volume in list_mounted(pod, scorer.container) if "secret" in volume]


def test_gateways_ask_the_scorer_and_nobody_else_does() -> None:
    manifests = render(SCORER)
    gateway, scorer = find_process(manifests, "gateway"), find_process(manifests, "scorer")
    port = scorer.settings["scorer"]["port"]
    assert gateway.settings["gateway"]["scorer_url"] == f"http://scorer:{port}"
    arrows = {arrow for arrow in list_required(manifests) if (arrow.target, arrow.port) == ("trainer", port)}
    assert {arrow.source for arrow in arrows} == {"gateway", "prometheus"}
    for policy in ("scorer", "gateway-to-scorer", "prometheus-to-scorer"):
        manifests = render(SCORER)
        manifests.remove(find(manifests, "NetworkPolicy", policy))
        assert list_faults(manifests)[0]


def test_a_trainer_with_a_scorer_does_not_sleep() -> None:
    assert find(render("prod"), "ScaledObject", "trainer")["spec"]["minReplicaCount"] == 0
    assert find(render(SCORER), "ScaledObject", "trainer")["spec"]["minReplicaCount"] == 1


def test_a_scorer_goes_without_a_gpu_by_the_readmes_patch(tmp_path: Path) -> None:
    manifests = assemble(tmp_path, "prod", ["components/scorer"], read_patches("scorer"))
    trainer, scorer = find_pod(manifests, "trainer").spec["containers"]
    assert GPU in trainer["resources"]["limits"] and GPU not in scorer["resources"]["limits"]
    assert scorer["resources"]["limits"]["memory"] == trainer["resources"]["limits"]["memory"]


def test_the_readmes_own_overlay_renders_with_the_arrows_that_it_needs(tmp_path: Path) -> None:
    (block,) = re.findall(r"<<'EOF'\n((?:.*\n)+?) *EOF\n", (K8S / "README.md").read_text())
    ours = yaml.safe_load(textwrap.dedent(block))
    assert ours["resources"] == ["../prod"] and ours["namespace"] == "prefloop"
    manifests = assemble(tmp_path, "prod", [each.removeprefix("../../") for each in ours["components"]])
    assert list_faults(manifests) == (set(), set())
    assert [each["name"] for each in find_pod(manifests, "trainer").spec["containers"]] == ["trainer", "scorer"]


@pytest.mark.parametrize("component", [ROUND_JOBS, TRAINER_NODES, SCORER])
def test_each_goes_with_an_overlay_without_operators_and_gpus(component: str, tmp_path: Path) -> None:
    manifests = assemble(tmp_path, "dev", [f"components/{component}"])
    assert list_faults(manifests) == (set(), set())
    assert not [each for each in manifests if is_custom(each)]
    for manifest in manifests:
        for version in (OLDEST, NEWEST):
            schema = find_builtin_schema(version, manifest["apiVersion"], manifest["kind"])
            assert schema.list_problems(manifest) == [], manifest["metadata"]["name"]
    containers = find_pod(manifests, "trainer").containers
    assert not [each for each in containers if GPU in each["resources"]["limits"]]


def test_every_monitor_finds_who_is_to_be_scraped() -> None:
    assert {each["metadata"]["name"] for each in of_kind(render(SCORER), "PodMonitor")} == {"engine", "scorer"}
    jobs = {
        relabeling["replacement"]
        for overlay in (SCORER, "whole-models")
        for each in of_kind(render(overlay), "PodMonitor")
        for endpoint in each["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
    }
    assert jobs == {"vllm", "prefloop-sync", "prefloop-scorer", "prefloop-engine-host"}
