"""Exactly the arrows that the settings need pass the network policies, on both of their ends: no policy is missing, none is
too much. Each fault is also made by hand here and seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.k8s.arrows import TORCH_PORTS, Arrow, list_allowed, list_required
from tests.k8s.manifests import ADDED, ALL, OVERLAYS, Manifest, find, find_pod, of_kind, render

# Consequences of a rule that cannot be narrower: the API server has no label, so its ports are let out to any address.
TOLERATED = {
    Arrow(source, target, port)
    for source in ("postgres", "kafka")
    for target in ("internet", "instance-metadata", "api-server")
    for port in (443, 6443)
} | {
    Arrow(source, target, port)
    for source in ("postgres", "kafka")
    for target in ("dns", "prometheus", "keda", "strimzi", "cnpg", "app", "stranger")
    for port in (443, 6443)
}


def list_faults(manifests: Sequence[Manifest], required: set[Arrow] | None = None) -> tuple[set[Arrow], set[Arrow]]:
    """Arrows that are needed and do not pass, and those that pass and are not needed. required: if it is known."""
    required = list_required(manifests) if required is None else required
    ports = {(arrow.port, arrow.protocol) for arrow in required}
    ports |= {(port, "TCP") for port in (22, 443, 6443, 5432, 8000, 8800, 8802, 8803, 8804, 8805, 9091, 9093)}
    ports |= {(port, "TCP") for port in (29400, 32767, *TORCH_PORTS, 61000)}
    allowed = list_allowed(manifests, ports)
    return required - allowed, allowed - required - TOLERATED


@pytest.mark.parametrize("overlay", ALL)
def test_exactly_the_arrows_that_the_settings_need_pass(overlay: str) -> None:
    assert list_faults(render(overlay)) == (set(), set())


def test_the_arrows_are_these() -> None:
    """Computed from the settings; here in full, so that a change of the computation is seen."""
    named = {
        (arrow.source, arrow.target, arrow.port) for arrow in list_required(render("prod")) if arrow.target != "dns"
    }
    assert {arrow for arrow in named if arrow[0] in ("gateway", "engine", "trainer", "migrate", "base-model")} == {
        ("gateway", "engine", 8000),
        ("gateway", "trainer", 8802),
        ("gateway", "postgres", 5432),
        ("gateway", "kafka", 9093),
        ("gateway", "internet", 443),
        ("engine", "gateway", 8800),
        ("engine", "internet", 443),
        ("trainer", "gateway", 8800),
        ("trainer", "postgres", 5432),
        ("trainer", "kafka", 9093),
        ("trainer", "internet", 443),
        ("migrate", "postgres", 5432),
        ("base-model", "internet", 443),
    }
    assert {arrow for arrow in named if arrow[0] in ("prometheus", "app", "keda")} == {
        ("app", "gateway", 8800),
        ("prometheus", "gateway", 8800),
        ("prometheus", "trainer", 8802),
        ("prometheus", "engine", 8000),
        ("prometheus", "engine", 8804),
        ("keda", "kafka", 9093),
    }


def list_policies(overlay: str) -> list[str]:
    return [each["metadata"]["name"] for each in of_kind(render(overlay), "NetworkPolicy")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_any_one_policy_something_is_wrong(overlay: str) -> None:
    names, required = list_policies(overlay), list_required(render(overlay))
    assert len(names) >= 6
    for name in names:
        manifests = render(overlay)
        manifests.remove(find(manifests, "NetworkPolicy", name))
        assert list_faults(manifests, required) != (set(), set()), f"nobody misses the policy {name}"


@pytest.mark.parametrize("overlay", ALL)
def test_without_any_one_rule_something_is_missing(overlay: str) -> None:
    required = list_required(render(overlay))
    known = list_policies("prod") if overlay in ADDED else []
    for name in set(list_policies(overlay)) - set(known):
        spec = find(render(overlay), "NetworkPolicy", name)["spec"]
        for way in ("ingress", "egress"):
            for number in range(len(spec.get(way, []))):
                manifests = render(overlay)
                del find(manifests, "NetworkPolicy", name)["spec"][way][number]
                missing, _ = list_faults(manifests, required)
                assert missing, f"nobody misses rule {number} of {way} of {name}"


def test_a_setting_that_names_another_place_needs_another_policy() -> None:
    manifests = render("prod")
    container = find_pod(manifests, "gateway").container("gateway")
    container["env"].append({"name": "PREFLOOP_GATEWAY__SCORER_URL", "value": "http://trainer:8802"})
    assert list_faults(manifests) == (set(), set())  # the trainer's port is open to it already
    container["env"].append({"name": "PREFLOOP_GATEWAY__OTLP_ENDPOINT", "value": "https://collector.example:4318"})
    with pytest.raises(AssertionError, match=r"collector\.example is elsewhere"):
        list_required(manifests)


def test_a_policy_that_opens_engines_to_apps_is_seen() -> None:
    manifests = render("prod")
    rule = {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 8000}]}
    find(manifests, "NetworkPolicy", "engine")["spec"]["ingress"].append(rule)
    _, needless = list_faults(manifests)
    assert Arrow("app", "engine", 8000) in needless and Arrow("stranger", "engine", 8000) in needless


def test_a_service_that_maps_to_another_port_is_seen() -> None:
    manifests = render("prod")
    find(manifests, "Service", "engine")["spec"]["ports"][0].update(port=80)
    with pytest.raises((AssertionError, ValueError)):
        list_required(manifests)
