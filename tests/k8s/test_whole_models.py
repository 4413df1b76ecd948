"""The component for whole models keeps what all others keep: its arrows, the restricted standard, its settings, its end."""

from __future__ import annotations

from tests.k8s.arrows import Arrow, list_required
from tests.k8s.manifests import WHOLE_MODELS, find, find_pod, list_mounted, list_pods, of_kind, render
from tests.k8s.processes import find_process
from tests.k8s.restricted import list_violations
from tests.k8s.test_network_policies import list_faults
from tests.k8s.test_pods import CLOSING_S


def test_exactly_the_arrows_that_it_needs_pass() -> None:
    manifests = render(WHOLE_MODELS)
    assert list_faults(manifests) == (set(), set())
    own = {arrow for arrow in list_required(manifests) if "engine-host" in (arrow.source, arrow.target)}
    assert {arrow for arrow in own if arrow.target != "dns"} == {
        Arrow("gateway", "engine-host", 8000),
        Arrow("engine-host", "engine-host", 8000),
        Arrow("engine-host", "engine-host", 8805),
        Arrow("engine-host", "gateway", 8800),
        Arrow("engine-host", "internet", 443),
        Arrow("prometheus", "engine-host", 8000),
        Arrow("prometheus", "engine-host", 8805),
    }
    for policy in ("engine-host", "gateway-and-engine-host", "prometheus-to-engine-host"):
        manifests = render(WHOLE_MODELS)
        manifests.remove(find(manifests, "NetworkPolicy", policy))
        assert list_faults(manifests)[0]


def test_a_host_keeps_what_every_pod_keeps() -> None:
    manifests = render(WHOLE_MODELS)
    pod = find_pod(manifests, "engine-host")
    assert list_violations(pod.spec) == [] and pod.spec["automountServiceAccountToken"] is False
    assert pod.labels["app.kubernetes.io/part-of"] == "prefloop"
    container = pod.container("engine-host")
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["image"] == find_pod(manifests, "engine").container("engine")["image"]
    section = find_process(manifests, "engine-host").settings["engine_host"]
    mounted = dict(list_mounted(pod, container))
    assert (
        "emptyDir" in mounted[section["directory"]]
        and "emptyDir" in mounted["/tmp"]
        and "emptyDir" in mounted["/cache"]
    )
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": section["engine_port"], "host": section["port"]}
    assert section["host"] == section["engine_host"] == "0.0.0.0"
    assert pod.spec["terminationGracePeriodSeconds"] >= section["drain_s"] + CLOSING_S
    gateway = find_process(manifests, "gateway").settings["gateway"]
    assert section["drain_s"] >= gateway["answer_timeout_s"]


def test_one_model_may_serve_while_another_is_on_trial() -> None:
    manifests = render(WHOLE_MODELS)
    assert find(manifests, "Deployment", "engine-host")["spec"]["replicas"] >= 2
    assert "engine-host" in {each["metadata"]["name"] for each in of_kind(manifests, "PodDisruptionBudget")}
    assert {pod.name for pod in list_pods(manifests)} == {pod.name for pod in list_pods(render("prod"))} | {
        "engine-host"
    }
