"""Strict schemas: of Kubernetes' kinds, as the package kubernetes-validate ships them, and of operators' kinds, of the
definitions that the rehearsal keeps in its cache; none are kept in the repository.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import referencing
import yaml

from k8s.rehearsal.binaries import BuildFailed, cache_dir
from k8s.rehearsal.crds import fetch_crds
from tests.k8s.manifests import Manifest, skip_or_fail

_METADATA = {"name", "namespace", "labels", "annotations"}


@dataclass(frozen=True)
class KindSchema:
    """What a version of a kind may hold."""

    schema: dict[str, Any]
    registry: referencing.Registry[Any] = field(default_factory=referencing.Registry)

    def list_problems(self, manifest: Manifest) -> list[str]:
        """What does not fit, with its place."""
        found = jsonschema.Draft202012Validator(self.schema, registry=self.registry).iter_errors(manifest)
        problems = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
        return problems + [f"metadata.{name}" for name in manifest["metadata"].keys() - _METADATA]


@lru_cache
def _load_definitions(folder: str) -> referencing.Registry[Any]:
    """What the schemas of a release refer to: three megabytes, read once."""
    text = (files("kubernetes_validate") / "kubernetes-json-schema" / folder / "_definitions.json").read_text()
    return referencing.Resource.from_contents(json.loads(text)) @ referencing.Registry()


@lru_cache
def find_builtin_schema(release: str, api_version: str, kind: str) -> KindSchema:
    """The strict schema of one of Kubernetes' own kinds. release: "1.30"."""
    folder = f"v{release}.0-local-strict"
    group, _, version = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0] + '-' if group else ''}{version}.json"
    text = (files("kubernetes_validate") / "kubernetes-json-schema" / folder / name).read_text()
    schema = json.loads(text)
    return KindSchema(schema, referencing.Resource.from_contents(schema) @ _load_definitions(folder))


@lru_cache
def find_definitions() -> tuple[Path, ...]:
    """Every definition: those at hand, and in CI those that have to be fetched first."""
    try:
        return tuple(fetch_crds() if os.environ.get("CI") == "true" else (cache_dir() / "crds").glob("*/*.yaml"))
    except BuildFailed as error:
        skip_or_fail(str(error))


@lru_cache
def find_schema(api_version: str, kind: str) -> KindSchema:
    """The strict schema of a kind. Skips the test if its definition is not at hand."""
    group, _, version = api_version.partition("/")
    for path in sorted(path for path in find_definitions() if kind.lower() in path.name):
        definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        if definition["group"] != group or definition["names"]["kind"] != kind:
            continue
        for each in definition["versions"]:
            if each["name"] == version:
                return KindSchema(_make_strict(each["schema"]["openAPIV3Schema"]))
    skip_or_fail(f"no definition of {api_version} {kind} is at hand: make k8s-rehearsal fetches them")


def _make_strict(schema: Any) -> Any:
    """Refuse unknown fields, as the API server drops them; int-or-string in JSON Schema's words."""
    if isinstance(schema, list):
        return [_make_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "properties":
            made[name] = {field: _make_strict(each) for field, each in value.items()}
        elif name in ("items", "additionalProperties", "allOf", "anyOf", "oneOf", "not"):
            made[name] = _make_strict(value) if name not in ("allOf", "anyOf", "oneOf", "not") else value
        elif name not in ("format", "default", "example", "description"):
            made[name] = value
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    is_open = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if "properties" in made and not is_open:
        made["additionalProperties"] = False
    return made
