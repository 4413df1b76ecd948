"""What every pod keeps: the restricted standard, a read-only root, no token, a place for what it writes, and an end in time."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gateway.settings import GatewaySettings
from tests.k8s.manifests import (
    ALL,
    OVERLAYS,
    ROUND_JOBS,
    SCORER,
    TRAINER_NODES,
    WHOLE_MODELS,
    Pod,
    find,
    find_pod,
    list_mounted,
    list_pods,
    of_kind,
    read_environment,
    render,
)
from tests.k8s.restricted import list_violations

CLOSING_S = 30  # what a gateway takes to close its parts, an engine to end its processes
PODS = [(overlay, name) for overlay in OVERLAYS for name in ("gateway", "engine", "trainer", "migrate", "base-model")]
PODS += [(WHOLE_MODELS, "engine-host"), (ROUND_JOBS, "trainer"), (SCORER, "trainer")]
PODS += [(TRAINER_NODES, "trainer"), (TRAINER_NODES, "trainer-node")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pods_are_those_listed_here(overlay: str) -> None:
    assert {pod.name for pod in list_pods(render(overlay))} == {name for own, name in PODS if own == overlay}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_enforces_the_restricted_standard(overlay: str) -> None:
    (namespace,) = of_kind(render(overlay), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("overlay", "name"), PODS)
def test_every_pod_passes_the_restricted_standard(overlay: str, name: str) -> None:
    assert list_violations(find_pod(render(overlay), name).spec) == []


def test_each_way_to_break_the_standard_is_seen() -> None:
    spec = find_pod(render("prod"), "engine").spec
    broken: list[dict[str, Any]] = []
    for change in (
        lambda it: it["securityContext"].pop("runAsNonRoot"),
        lambda it: it["securityContext"].pop("seccompProfile"),
        lambda it: it["containers"][0].pop("securityContext"),
        lambda it: it["initContainers"][0]["securityContext"].pop("capabilities"),
        lambda it: it["containers"][0]["securityContext"].update(runAsUser=0),
        lambda it: it["containers"][0]["ports"][0].update(hostPort=8000),
        lambda it: it["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda it: it.update(hostNetwork=True),
    ):
        it = copy.deepcopy(spec)
        change(it)
        broken.append(it)
    assert list_violations(spec) == [] and all(list_violations(it) for it in broken)


@pytest.mark.parametrize(("overlay", "name"), PODS)
def test_roots_are_read_only_and_what_is_written_has_a_volume(overlay: str, name: str) -> None:
    manifests = render(overlay)
    pod = find_pod(manifests, name)
    for container in pod.containers:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounted = dict(list_mounted(pod, container))
        environment = read_environment(manifests, container)
        if container["name"] != "wait-for-base-model":  # a shell that looks at a file
            assert "emptyDir" in mounted["/tmp"], container["name"]
        for variable in ("HOME", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "PREFLOOP_STATE_DIR"):
            if path := environment.get(variable):
                assert any(f"{path}/".startswith(f"{at}/") for at in mounted), (container["name"], variable)


@pytest.mark.parametrize(("overlay", "name"), PODS)
def test_no_pod_holds_a_token_of_the_api_server(overlay: str, name: str) -> None:
    manifests = render(overlay)
    spec = find_pod(manifests, name).spec
    assert spec["automountServiceAccountToken"] is False
    assert find(manifests, "ServiceAccount", spec["serviceAccountName"])["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("overlay", "name"), PODS)
def test_every_container_asks_for_cpu_and_memory_and_is_held_to_its_memory(overlay: str, name: str) -> None:
    for container in find_pod(render(overlay), name).containers:
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"] and "cpu" not in container["resources"]["limits"]


@pytest.mark.parametrize(("overlay", "name"), PODS)
def test_every_pod_has_a_priority_and_answers_come_first(overlay: str, name: str) -> None:
    manifests = render(overlay)
    value = {
        name: find(manifests, "PriorityClass", name)["value"] for name in ("prefloop-serving", "prefloop-training")
    }
    of_pod = value[find_pod(manifests, name).spec["priorityClassName"]]
    first = name in ("gateway", "engine", "engine-host", "migrate")
    assert of_pod == (max if first else min)(value.values())


@pytest.mark.parametrize("overlay", ALL)
def test_every_secret_is_for_the_owner_alone_and_every_volume_is_mounted(overlay: str) -> None:
    for pod in list_pods(render(overlay)):
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
        for volume in pod.spec.get("volumes", []):
            assert volume["name"] in mounted, (pod.name, volume["name"])
            if "secret" in volume and volume["secret"]["secretName"].startswith("prefloop-"):
                assert volume["secret"]["defaultMode"] == 0o400, (pod.name, volume["name"])
            if "projected" in volume:
                assert volume["projected"]["defaultMode"] == 0o400, (pod.name, volume["name"])
        for container in pod.containers:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            assert len(set(paths)) == len(paths)
            assert all(
                mount["name"] in {each["name"] for each in pod.spec["volumes"]} for mount in container["volumeMounts"]
            )


def stop_s(pod: Pod, container: str) -> float:
    """Seconds between the end's beginning and SIGTERM."""
    return float(pod.container(container)["lifecycle"]["preStop"]["sleep"]["seconds"])


def read_gateway(overlay: str, monkeypatch: pytest.MonkeyPatch) -> GatewaySettings:
    manifests = render(overlay)
    for name, value in read_environment(manifests, find_pod(manifests, "gateway").container("gateway")).items():
        if name.startswith("PREFLOOP_"):
            monkeypatch.setenv(name, value)
    return GatewaySettings()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_gateway_that_ends_outlives_its_longest_answer(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_gateway(overlay, monkeypatch).gateway
    pod = find_pod(render(overlay), "gateway")
    longest_s = settings.connect_wait_s + settings.answer_timeout_s  # one that waited for an engine first
    assert settings.drain_timeout_s > longest_s
    assert pod.spec["terminationGracePeriodSeconds"] >= stop_s(pod, "gateway") + settings.drain_timeout_s + CLOSING_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_engine_that_ends_outlives_its_longest_answer(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_gateway(overlay, monkeypatch).gateway
    pod = find_pod(render(overlay), "engine")
    (argument,) = [each for each in pod.container("engine")["args"] if each.startswith("--shutdown-timeout=")]
    drain_s = float(argument.partition("=")[2])
    assert drain_s >= settings.answer_timeout_s
    assert pod.spec["terminationGracePeriodSeconds"] >= stop_s(pod, "engine") + drain_s + CLOSING_S
    assert stop_s(pod, "engine") > settings.resolve_s + 5  # a cluster's DNS keeps an answer for five seconds


@pytest.mark.parametrize("overlay", ALL)
def test_no_new_gateway_or_trainer_runs_before_the_migration(overlay: str) -> None:
    manifests = render(overlay)
    job = find_pod(manifests, "migrate")
    assert job.containers[0]["command"] == ["prefloop", "migrate"]
    for name in ("gateway", "trainer"):
        pod = find_pod(manifests, name)
        waiting = pod.container("wait-for-migration")
        assert waiting in pod.spec["initContainers"] and waiting.get("restartPolicy") != "Always"
        assert "until prefloop migrate --check" in waiting["command"][-1]
        own = f"PREFLOOP_{name.upper()}__DATABASE_URL"
        checked = read_environment(manifests, waiting)
        assert checked.get(own) == read_environment(manifests, pod.container(name)).get(own)
        assert read_environment(manifests, job.containers[0]).get(own) == checked.get(own)


def test_production_survives_a_node() -> None:
    manifests = render("prod")
    for name in ("gateway", "engine"):
        budget = find(manifests, "PodDisruptionBudget", name)["spec"]
        assert budget["maxUnavailable"] == 1 and budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert budget["selector"]["matchLabels"].items() <= find_pod(manifests, name).labels.items()
        assert "replicas" not in find(manifests, "Deployment", name)["spec"]  # else every apply undoes the autoscaler
    assert find(manifests, "HorizontalPodAutoscaler", "gateway")["spec"]["minReplicas"] >= 2
    assert find(manifests, "ScaledObject", "engine")["spec"]["minReplicaCount"] >= 2
    constraints = find_pod(manifests, "gateway").spec["topologySpreadConstraints"]
    assert [(each["topologyKey"], each["whenUnsatisfiable"]) for each in constraints] == [
        ("kubernetes.io/hostname", "DoNotSchedule"),
        ("topology.kubernetes.io/zone", "ScheduleAnyway"),
    ]
    # A lost node is no place that wants its share: else its pods would wait for it and never start elsewhere.
    assert all(each["nodeTaintsPolicy"] == "Honor" for each in constraints)
    assert find(manifests, "Cluster", "postgres")["spec"]["instances"] == 3
    assert find(manifests, "Cluster", "postgres")["spec"]["postgresql"]["synchronous"]["number"] == 1
    assert {each["metadata"]["name"]: each["spec"]["replicas"] for each in of_kind(manifests, "KafkaNodePool")} == {
        "broker": 3, "controller": 3,
    }  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_database_in_a_file_has_one_gateway(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_gateway(overlay, monkeypatch)
    spec = find(render(overlay), "Deployment", "gateway")["spec"]
    if settings.gateway_database.startswith("sqlite"):
        assert spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    else:
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
