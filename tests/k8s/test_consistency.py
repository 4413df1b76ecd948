"""Manifests and code agree: commands, arguments, settings, ports, probes, topics, files and metric names."""

from __future__ import annotations

import importlib.util
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.access.secrets import load_secrets
from prefloop.services import Layout, choose_max_lora_rank, engine_service
from tests.k8s.manifests import (
    ALL,
    K8S,
    OVERLAYS,
    ROOT,
    Pod,
    find,
    find_pod,
    list_mounted,
    list_pods,
    of_kind,
    read_environment,
    render,
)
from tests.k8s.processes import find_process, list_processes

OTHERS = {
    "dev": set(),
    "prod": {"sync"},
    "whole-models": {"sync", "engine-host"},
    "round-jobs": {"sync"},
    "trainer-nodes": {"sync", "trainer-node"},
    "scorer": {"sync", "scorer"},
}
MACHINE_ONLY = {"--model", "--served-model-name", "--host", "--port", "--gpu-memory-utilization"}
CLUSTER_ONLY = {"--shutdown-timeout"}  # on one machine nobody waits for streams


def each_container(overlay: str) -> list[tuple[Pod, dict[str, Any]]]:
    return [(pod, container) for pod in list_pods(render(overlay)) for container in pod.containers]


@pytest.mark.parametrize("overlay", ALL)
def test_every_image_has_a_containerfile(overlay: str) -> None:
    built = {path.name.removesuffix(".Containerfile") for path in (K8S / "images").glob("*.Containerfile")}
    used = {container["image"].rpartition("/")[2].partition(":")[0] for _, container in each_container(overlay)}
    assert used == built == {"gateway", "engine", "trainer"}
    tags = {container["image"].partition("prefloop/")[2].partition(":")[2] for _, container in each_container(overlay)}
    assert len(tags) == 1 and "latest" not in tags and "" not in tags


@pytest.mark.parametrize("overlay", ALL)
def test_every_command_is_one_of_ours_or_of_vllm(overlay: str) -> None:
    for pod, container in each_container(overlay):
        command = " ".join(container["command"])
        for module in re.findall(r"python -m ([\w.]+)", command):
            assert has_module(module), (pod.name, module)
        assert "python -m" in command or "prefloop" in command or command.startswith("sh -"), (pod.name, command)


def has_module(name: str) -> bool:
    """Whether a module is installed, without importing its package: vLLM's takes a quarter of a minute and more."""
    package, *rest = name.split(".")
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]).joinpath(*rest)
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize("overlay", ALL)
def test_every_process_could_start_with_its_settings(overlay: str) -> None:
    names = {each.container["name"] for each in list_processes(render(overlay))}
    assert names == {"gateway", "trainer", "migrate", "wait-for-migration"} | OTHERS[overlay]


@pytest.mark.parametrize("overlay", ALL)
def test_variables_refer_to_those_before_them(overlay: str) -> None:
    manifests = render(overlay)
    for pod, container in each_container(overlay):
        left = {name: value for name, value in read_environment(manifests, container).items() if "$(" in value}
        assert not left, (pod.name, container["name"], left)


@pytest.mark.parametrize("overlay", ALL)
def test_processes_listen_where_services_and_probes_look(overlay: str) -> None:
    manifests = render(overlay)
    for process in list_processes(manifests):
        name = process.container["name"]
        if name in ("gateway", "trainer", "sync", "scorer"):
            section = process.settings[name]
            assert section["host"] == "0.0.0.0", name  # a probe comes from the node
            ports = set() if "--once" in process.container["command"] else {section["port"]}
            ports |= {int(each.partition(":")[2]) for each in [section.get("rendezvous")] if each}
            assert {port["containerPort"] for port in process.container["ports"]} == ports, name
    args = find_pod(manifests, "engine").container("engine")["args"]
    assert "--host=0.0.0.0" in args and "--port=8000" in args
    for service in of_kind(manifests, "Service"):
        pods = [pod for pod in list_pods(manifests) if service["spec"]["selector"].items() <= pod.labels.items()]
        assert len(pods) == 1, service["metadata"]["name"]


def list_paths(pod: Pod, container: dict[str, Any]) -> set[str]:
    probes = [container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container]
    names = {port["name"] for port in container["ports"]}
    assert all(probe["httpGet"]["port"] in names for probe in probes), (pod.name, container["name"])
    return {probe["httpGet"]["path"] for probe in probes}


@pytest.mark.parametrize("overlay", ALL)
def test_probes_ask_for_pages_that_are_served(overlay: str) -> None:
    manifests = render(overlay)
    served = {
        "gateway": set(re.findall(r'"GET", "(/\w+)"', (ROOT / "gateway/api/health.py").read_text())),
        "trainer": set(re.findall(r'"(/livez|/readyz)"', (ROOT / "trainer/run/status/server.py").read_text())),
        "sync": set(re.findall(r'"(/livez|/readyz)"', (ROOT / "prefloop/pages.py").read_text())),
        "engine": {"/health"},
        "engine-host": set(re.findall(r'"(/livez|/readyz)"', (ROOT / "prefloop/pages.py").read_text())),
        "scorer": set(re.findall(r'"(/livez|/readyz)"', (ROOT / "trainer/run/reward/scoring_pages.py").read_text())),
    }
    for pod, container in each_container(overlay):
        if container.get("ports"):
            paths = list_paths(pod, container)
            assert paths and paths <= served[container["name"]], (container["name"], paths)
    gateway = find_pod(manifests, "gateway").container("gateway")
    # Engines that are all away take no gateway out of the Service; only the first start waits for one.
    assert gateway["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert gateway["readinessProbe"]["httpGet"]["path"] == gateway["livenessProbe"]["httpGet"]["path"] == "/livez"


@pytest.mark.parametrize("overlay", ALL)
def test_what_registers_checkpoints_reaches_gateways_that_are_not_ready(overlay: str) -> None:
    """Ready means that a checkpoint serves: whoever brings the first one must be let in before."""
    manifests = render(overlay)
    names = {"trainer": "trainer"} | ({"sync": "sync"} if overlay != "dev" else {})
    for container, section in names.items():
        url = find_process(manifests, container).settings[section]["gateway_url"]
        service = find(manifests, "Service", url.split("//")[1].partition(":")[0])
        assert service["spec"]["publishNotReadyAddresses"] is True
    assert "publishNotReadyAddresses" not in find(manifests, "Service", "gateway")["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_engines_are_started_as_on_one_machine(overlay: str) -> None:
    manifests = render(overlay)
    engine = find_pod(manifests, "engine").container("engine")
    ours = [each.partition("=")[::2] for each in engine["args"]]
    assert len({name for name, _ in ours}) == len(ours)
    device = "cpu" if overlay == "dev" else "cuda"
    service = engine_service(Layout(state_dir=Path("/s"), device=device))
    there = {a: b for a, b in pairwise([*service.argv, ""]) if a.startswith("--")}
    there = {name: "" if value.startswith("--") else value for name, value in there.items()}
    there |= {} if overlay == "dev" else {"--dtype": "bfloat16"}  # said, so that the gateway's setting is not a guess
    here = {name: value for name, value in ours if name not in MACHINE_ONLY | CLUSTER_ONLY}
    assert here == {name: value for name, value in there.items() if name not in MACHINE_ONLY}
    environment = read_environment(manifests, engine)
    for name, value in service.env.items():
        if name != "OMP_NUM_THREADS":  # as many as a machine has cores to spare
            assert environment[name] == value, name
    gateway = find_process(manifests, "gateway").settings
    assert gateway["gateway"]["engine_dtype"] == there["--dtype"]
    trainer = find_process(manifests, "trainer").settings
    rank = trainer["trainer"]["model"]["lora_rank"] or 16
    assert here["--max-lora-rank"] == str(choose_max_lora_rank(rank))
    assert dict(ours)["--model"] == gateway["base_model"] == trainer["base_model"]


@pytest.mark.parametrize("overlay", ALL)
def test_files_that_settings_name_are_mounted(overlay: str) -> None:
    manifests = render(overlay)
    for process in list_processes(manifests):
        mounted = [path for path, _ in list_mounted(process.pod, process.container)]
        named = [value for name, value in flatten(process.settings) if name.endswith(("_file", "directory"))]
        urls = [value for _, value in flatten(process.settings) if "sslrootcert=" in value]
        named += [url.partition("sslrootcert=")[2] for url in urls]
        for path in filter(None, named):
            assert any(path.startswith(f"{at}") for at in mounted), (process.container["name"], path)


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, each in value.items() for pair in flatten(each, str(key))]
    return [(name, value)] if isinstance(value, str) else []


@pytest.mark.parametrize("overlay", ALL)
def test_the_secrets_are_those_that_a_gateway_makes_for_itself(overlay: str, tmp_path: Path) -> None:
    load_secrets(tmp_path)
    made = {path.name for path in (tmp_path / "secrets").iterdir()}
    manifests = render(overlay)
    gateway = find_pod(manifests, "gateway")
    mounted = dict(list_mounted(gateway, gateway.container("gateway")))
    state_dir = find_process(manifests, "gateway").settings["state_dir"]
    assert mounted[f"{state_dir}/secrets"]["secret"]["secretName"] == "prefloop-secrets"
    commands = (K8S / "README.md").read_text()
    given = re.search(r"create secret generic prefloop-secrets((?:.|\n)*?)\n\n", commands)
    assert given and {*re.findall(r"--from-literal=(\w+)=", given[1])} == made
    trainer = find_pod(manifests, "trainer")
    volume = dict(list_mounted(trainer, trainer.container("trainer")))[f"{state_dir}/secrets"]
    sources = {each["secret"]["name"]: each["secret"]["items"] for each in volume["projected"]["sources"]}
    assert sources == {
        "prefloop-keys": [{"key": "trainer", "path": "admin_key"}],
        "prefloop-secrets": [{"key": "trainer_token", "path": "trainer_token"}],
    }


@pytest.mark.parametrize("overlay", ALL)
def test_every_secret_of_ours_is_made_by_a_command_of_the_readme(overlay: str) -> None:
    commands = (K8S / "README.md").read_text()
    made = set(re.findall(r"create (?:secret generic|configmap) ([\w-]+)", commands))
    manifests = render(overlay)
    generated = {each["metadata"]["name"] for each in of_kind(manifests, "ConfigMap", "Secret")}
    by_operators = {
        "postgres-app",
        "postgres-ca",
        "feedback-cluster-ca-cert",
        "kafka-user-gateway",
        "kafka-user-trainer",
    }
    used: set[str] = set()
    for pod, container in each_container(overlay):
        for volume in pod.spec.get("volumes", []):
            sources = [volume, *volume.get("projected", {}).get("sources", [])]
            used |= {
                source[kind].get("secretName") or source[kind]["name"]
                for source in sources
                for kind in ("secret", "configMap")
                if kind in source
            }
        for source in container.get("envFrom", []):
            used |= {reference["name"] for reference in source.values()}
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            used |= {reference["name"]} if reference else set()
    assert used - generated - by_operators <= made, used - generated - by_operators - made


def test_a_misspelt_setting_is_seen() -> None:
    manifests = render("dev")
    container = find_pod(manifests, "gateway").container("gateway")
    container.setdefault("env", []).append({"name": "PREFLOOP_GATEWAY__DRAIN_TIMEOUT", "value": "5"})
    with pytest.raises(Exception, match="is no setting"):
        list_processes(manifests)
