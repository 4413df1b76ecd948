"""Every manifest is what its kind's schema allows and nothing beside it: a misspelt field fails here, not in the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import ADDED, ALL, K8S, OVERLAYS, Manifest, render
from tests.k8s.schemas import find_builtin_schema, find_schema

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes: preStop sleep came with 1.30
CUSTOM = {"kafka.strimzi.io", "postgresql.cnpg.io", "keda.sh", "monitoring.coreos.com"}


OWN = Path(__file__).parent / "overlays"


def is_custom(manifest: Manifest) -> bool:
    return manifest["apiVersion"].partition("/")[0] in CUSTOM


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("overlay", ALL)
def test_what_kubernetes_knows_is_valid_in_the_oldest_and_newest_release(overlay: str, version: str) -> None:
    known = [each for each in render(overlay) if not is_custom(each)]
    assert len(known) > 20
    for manifest in known:
        problems = find_builtin_schema(version, manifest["apiVersion"], manifest["kind"]).list_problems(manifest)
        assert not problems, (manifest["kind"], manifest["metadata"]["name"], problems)


def test_a_misspelt_field_is_refused() -> None:
    deployment = next(each for each in render("dev") if each["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert find_builtin_schema(NEWEST, "apps/v1", "Deployment").list_problems(deployment)


@pytest.mark.parametrize("overlay", ["prod", *ADDED])
def test_what_operators_know_is_valid_by_their_own_definitions(overlay: str) -> None:
    custom = [each for each in render(overlay) if is_custom(each)]
    assert {each["apiVersion"].partition("/")[0] for each in custom} == CUSTOM
    for manifest in custom:
        problems = find_schema(manifest["apiVersion"], manifest["kind"]).list_problems(manifest)
        assert not problems, (manifest["kind"], manifest["metadata"]["name"], problems)


def test_a_misspelt_field_of_an_operators_kind_is_refused() -> None:
    kafka = next(each for each in render("prod") if each["kind"] == "Kafka")
    kafka["spec"]["kafka"]["listners"] = []
    assert find_schema(kafka["apiVersion"], "Kafka").list_problems(kafka)


def test_every_component_and_overlay_is_read_by_something() -> None:
    """A folder that no overlay takes is never rendered, and so never checked."""
    components = K8S / "components"
    folders = {str(path.parent.relative_to(components)) for path in components.rglob("kustomization.yaml")}
    taken: set[str] = {"round-jobs/pod"}  # by round-jobs
    for folder in (*(K8S / "overlays" / overlay for overlay in OVERLAYS), *(OWN / overlay for overlay in ADDED)):
        text = (folder / "kustomization.yaml").read_text()
        taken |= {str(each).rpartition("components/")[2] for each in read_list(text, "components")}
    in_prod = {"gpu", "kafka-strimzi", "postgres-cnpg", "keda", "monitoring", "s3"}
    assert folders == taken == in_prod | {*ADDED, "monitoring/whole-models", "monitoring/scorer", "round-jobs/pod"}
    prod = read_list((K8S / "overlays" / "prod" / "kustomization.yaml").read_text(), "components")
    assert {str(each).rpartition("components/")[2] for each in prod} == in_prod
    assert {path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml")} == set(OVERLAYS)


def read_list(text: str, name: str) -> list[Any]:
    return list(yaml.safe_load(text).get(name, []))
