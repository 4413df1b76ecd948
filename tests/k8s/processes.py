"""Each of our processes in the manifests with the settings that it would read there, by the code's own settings classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gateway.settings import GatewaySettings
from prefloop.feedback.sources import read_sources
from prefloop.migrate import list_stores
from tests.k8s.manifests import Manifest, Pod, list_pods, read_environment
from trainer.settings import TrainerSettings


@dataclass(frozen=True)
class Process:
    """What runs in a container, and what of its settings it uses."""

    pod: Pod
    container: dict[str, Any]
    settings: dict[str, Any]


def list_processes(manifests: Sequence[Manifest]) -> list[Process]:
    """Every process of ours that reads settings. Raises SettingsError where it could not start with them."""
    processes = []
    for pod in list_pods(manifests):
        for container in pod.containers:
            with environment(read_environment(manifests, container)):
                if (settings := read_settings(container)) is not None:
                    processes.append(Process(pod, container, settings))
    return processes


def find_process(manifests: Sequence[Manifest], container: str) -> Process:
    """The process of the container of this name, of all pods."""
    (found,) = [each for each in list_processes(manifests) if each.container["name"] == container]
    return found


def read_settings(container: dict[str, Any]) -> dict[str, Any] | None:
    """The settings that a container's process reads of this environment; None for what reads none."""
    words = " ".join(container.get("command", []))
    readers: dict[str, Callable[[], dict[str, Any]]] = {
        "python -m gateway.app": lambda: GatewaySettings().model_dump(),
        "python -m trainer.main": lambda: TrainerSettings().model_dump(),
        "python -m trainer.node": _read_node,
        "python -m trainer.scorer": _read_scorer,
        "prefloop migrate": _read_databases,
        "prefloop sync": _read_sync,
        "prefloop engine-host": _read_engine_host,
    }
    found = [read for command, read in readers.items() if command in words]
    return found[0]() if found else None


def _read_databases() -> dict[str, Any]:
    """What `prefloop migrate` uses: the databases that are named; no log."""
    return {store: url for store, url in list_stores(read_sources())}


def _read_node() -> dict[str, Any]:
    """What a node uses of the trainer's settings: all else is in the launches."""
    settings = TrainerSettings()
    names = ("num_nodes", "rendezvous")
    node = {name: getattr(settings.trainer, name) for name in names}
    return {"node": node, "base_model": settings.base_model, "rounds_dir": str(settings.rounds_dir)}


def _read_scorer() -> dict[str, Any]:
    """What the scorer uses of the trainer's settings: no database, log, key or checkpoint."""
    settings = TrainerSettings()
    section = settings.trainer.scorer.model_dump()
    return {"scorer": section, "base_model": settings.base_model, "reward_dir": str(settings.reward_dir)}


def _read_sync() -> dict[str, Any]:
    from prefloop.sync.settings import RunningSyncSettings

    return RunningSyncSettings().model_dump()


def _read_engine_host() -> dict[str, Any]:
    from prefloop.hosting.settings import EngineHostSettings

    return EngineHostSettings().model_dump()


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Have the process's environment hold these settings, and no others."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PREFLOOP_")}
    given = {name: value for name, value in values.items() if name.startswith("PREFLOOP_")}
    try:
        for name in kept:
            del os.environ[name]
        os.environ.update(given)
        yield
    finally:
        for name in given:
            del os.environ[name]
        os.environ.update(kept)
