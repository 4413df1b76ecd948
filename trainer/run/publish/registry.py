"""Talks to the gateway: who is stable, is a rollout active, which published checkpoints does it lack, which may go.

`Registrar` looks again and again, so that a gateway that was down, or lost its tables, learns of every directory.
Registration is idempotent by digest. It never decides what is served or may be deleted: the rollout controller does.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedback.errors import ManifestError
from feedback.manifest import CHECKPOINT_ID
from trainer.run.publish.checkpoints import remove_checkpoint
from trainer.run.publish.stored import StoredCopies

log = logging.getLogger("trainer.run.publish.registry")

DELETED = "deleted"
FINISHED_PHASES = frozenset({"Healthy", "Degraded", "Inconclusive"})
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


class GatewayUnavailable(Exception):
    """The gateway does not answer, or not yet: the same call may succeed later."""


class GatewayRefused(Exception):
    """The gateway understood and said no: the same call will fail again."""


@dataclass(frozen=True)
class ServingState:
    """What the gateway serves. stable is None until a first checkpoint is loaded; rollout is the active one's id."""

    stable: str | None
    stable_digest: str | None
    rollout: str | None
    rollout_phase: str | None


@dataclass(frozen=True)
class RegisteredCheckpoint:
    """A checkpoint as the gateway has it. may_delete: nothing needs its files any more."""

    id: str
    number: int
    digest: str
    status: str
    may_delete: bool = False


class Gateway:
    """The operator routes the trainer needs. key_path is read on every call: the gateway makes it when it starts."""

    def __init__(self, url: str, key_path: Path, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._key_path = key_path
        self._timeout_s = timeout_s
        # Loopback must not go through a proxy that the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def read_state(self) -> ServingState:
        """Ask who is stable. Raises GatewayUnavailable or GatewayRefused."""
        return parse_state(self._call("GET", "/operator/v1/status"))

    def list_checkpoints(self) -> list[RegisteredCheckpoint]:
        rows = self._call("GET", "/operator/v1/checkpoints").get("data", [])
        return [
            RegisteredCheckpoint(
                row["id"], int(row["number"]), row["digest"], row["status"], bool(row.get("may_delete"))
            )
            for row in rows
        ]

    def register(self, path: Path) -> str:
        """Register a published directory and return the checkpoint's status."""
        return str(self._call("POST", "/operator/v1/checkpoints", {"path": str(path.resolve())}).get("status", ""))

    def register_stored(self, checkpoint: str) -> str:
        """Register a checkpoint that the store holds, by its id, and return its status."""
        return str(self._call("POST", "/operator/v1/checkpoints", {"checkpoint": checkpoint}).get("status", ""))

    def delete_checkpoint(self, checkpoint: str) -> None:
        """Have the gateway delete a checkpoint for good, before its files go. Raises GatewayRefused if it is needed."""
        self._call("DELETE", f"/operator/v1/checkpoints/{checkpoint}")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            key = self._key_path.read_text().strip()
        except OSError as error:
            raise GatewayUnavailable(f"no admin key yet: {error}") from error
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read(500).decode(errors="replace")
            kind = GatewayUnavailable if error.code >= 500 or error.code in (401, 404, 429) else GatewayRefused
            raise kind(f"{method} {path}: {error.code} {text}") from error
        except (OSError, ValueError) as error:
            raise GatewayUnavailable(f"{method} {path}: {error}") from error
        if not isinstance(answer, dict):
            raise GatewayUnavailable(f"{method} {path}: not an object")
        return answer


def parse_state(status: dict[str, Any]) -> ServingState:
    """Read the answer of GET /operator/v1/status; a rollout in a final phase is not active."""
    stable = status.get("stable") or {}
    rollout = status.get("rollout") or {}
    is_active = bool(rollout) and rollout.get("phase") not in FINISHED_PHASES
    return ServingState(
        stable=stable.get("id"),
        stable_digest=stable.get("digest"),
        rollout=rollout.get("id") if is_active else None,
        rollout_phase=rollout.get("phase") if is_active else None,
    )


def register_missing(
    gateway: Gateway, published: Sequence[tuple[str, Path]], refused: set[str], copies: StoredCopies | None = None
) -> list[str]:
    """Register what the gateway lacks, in the order given: (digest, path). Returns the digests that were registered.

    copies: where there is a store, it holds every one of them first. A refused digest is added to `refused` and not tried
    again. Raises GatewayUnavailable, StoreUnavailable.
    """
    known = {checkpoint.digest: checkpoint.status for checkpoint in gateway.list_checkpoints()}
    registered = []
    for digest, path in published:
        if digest in refused or known.get(digest) == DELETED or (copies is None and digest in known):
            continue
        try:
            if copies is not None:
                copies.upload(path)
            if digest in known:
                continue
            status = gateway.register(path) if copies is None else gateway.register_stored(path.name)
        except (GatewayRefused, ManifestError) as error:
            refused.add(digest)
            log.error("checkpoint %s was refused: %s", path.name, error)
            continue
        registered.append(digest)
        log.info("checkpoint %s is registered (%s)", path.name, status)
    return registered


def remove_unneeded(
    gateway: Gateway, root: Path, copies: StoredCopies | None = None, needed: frozenset[str] = frozenset()
) -> list[str]:
    """Remove what nothing needs from `root` and from the store, and return the ids.

    needed: what learning still needs, whatever the gateway says. The gateway deletes a checkpoint first, for good; after a
    crash in between the files go the next time. Raises GatewayUnavailable, StoreUnavailable.
    """
    removed = []
    for known in gateway.list_checkpoints():
        path = root / known.id
        is_free = (known.may_delete and known.id not in needed) or known.status == DELETED
        if not is_free or not CHECKPOINT_ID.fullmatch(known.id) or not (copies is not None or path.is_dir()):
            continue
        if known.status != DELETED:
            try:
                gateway.delete_checkpoint(known.id)
            except GatewayRefused as error:  # it was put on trial meanwhile
                log.info("checkpoint %s stays: %s", known.id, error)
                continue
        was_stored = copies is not None and copies.remove(known.id)
        if path.is_dir():
            remove_checkpoint(path)
        elif not was_stored:
            continue
        removed.append(known.id)
    return removed


class Registrar(threading.Thread):
    """Keeps store and gateway's registry complete, both and `root` free of what nothing needs. `wake` after a publication."""

    def __init__(
        self,
        gateway: Gateway,
        list_published: Callable[[], Sequence[tuple[str, Path]]],
        root: Path,
        every_s: float,
        report: Callable[[str], None] = lambda error: None,
        copies: StoredCopies | None = None,
        list_needed: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        super().__init__(name="registrar", daemon=True)
        self._copies, self._list_needed = copies, list_needed
        self._gateway, self._list_published, self._root, self._every_s = gateway, list_published, root, every_s
        self._wake = threading.Event()
        self._report = report
        self._stopping = False
        self._refused: set[str] = set()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        backoff_s, last_error = FIRST_BACKOFF_S, ""
        while not self._stopping:
            self._wake.clear()
            try:
                register_missing(self._gateway, self._list_published(), self._refused, self._copies)
                remove_unneeded(self._gateway, self._root, self._copies, self._list_needed())
                if self._copies is not None:
                    self._copies.collect()
                last_error, backoff_s, pause_s = "", FIRST_BACKOFF_S, self._every_s
            except Exception as error:  # the loop's edge: a registry that is down must not end the trainer
                if str(error) != last_error:
                    log.warning("cannot register checkpoints, trying again: %s", error)
                last_error, pause_s = str(error), backoff_s
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            self._report(last_error)
            self._wake.wait(pause_s)
