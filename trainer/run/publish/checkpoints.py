"""Publishes checkpoints: a directory that is whole the moment it has its name.

Files and manifest are written under a temporary name and made durable; one rename publishes. A crash leaves a
temporary directory that `clean_unfinished` removes. Numbers rise and are never given twice. Neither registering nor the
decision what may be removed is made here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feedback.durable import publish_directory
from feedback.errors import ManifestError
from feedback.manifest import (
    MANIFEST,
    SIGNATURE,
    Manifest,
    Probe,
    checkpoint_id,
    combine_hashes,
    hash_file,
    hash_files,
    read_manifest,
    write_manifest,
)
from feedback.signing import SigningKey

log = logging.getLogger("trainer.run.publish.checkpoints")

UNFINISHED_PREFIX = ".unfinished-"
_NAME = re.compile(r"c-(\d{6,})-[0-9a-f]{12}")
_BASE_FILES = ("config.json", "tokenizer.json", "chat_template.jinja")


@dataclass(frozen=True)
class Draft:
    """What is known of a checkpoint before its files are written. watermark: next offset by partition."""

    number: int
    parent: str | None
    base_digest: str
    rank: int
    probe: Probe
    watermark: Mapping[int, int] = field(default_factory=dict)
    num_preferences: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    kind: str = "lora"


@dataclass(frozen=True)
class Published:
    """A published directory."""

    manifest: Manifest
    path: Path


def publish_checkpoint(
    root: Path, draft: Draft, write_adapter: Callable[[Path], None], now: float, key: SigningKey | None = None
) -> Published:
    """Write the adapter's files and the manifest, and rename them into place.

    write_adapter puts the files into the directory it is given. key: signs the manifest. Raises FileExistsError if the number
    is taken.
    """
    root.mkdir(parents=True, exist_ok=True)
    if draft.number in {number for number, _ in list_names(root)}:
        raise FileExistsError(f"checkpoint {draft.number} is already published")
    directory = root / f"{UNFINISHED_PREFIX}{draft.number:06d}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    write_adapter(directory)
    files = hash_files(directory)
    digest = combine_hashes(files)
    manifest = Manifest(
        id=checkpoint_id(draft.number, digest),
        number=draft.number,
        parent=draft.parent,
        base_digest=draft.base_digest,
        rank=draft.rank,
        digest=digest,
        files=files,
        created_at=now,
        probe=draft.probe,
        kind=draft.kind,
        watermark=dict(draft.watermark),
        num_preferences=draft.num_preferences,
        settings=dict(draft.settings),
        metrics=dict(draft.metrics),
    )
    write_manifest(directory, manifest)
    if key is not None:
        (directory / SIGNATURE).write_bytes(key.sign((directory / MANIFEST).read_bytes()))
    path = root / manifest.id
    publish_directory(directory, path)
    log.info("checkpoint %s is published", manifest.id)
    return Published(manifest, path)


def list_names(root: Path) -> list[tuple[int, Path]]:
    """(number, path) of every directory with a checkpoint's name, whole or not, in order of their numbers."""
    if not root.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def list_published(root: Path, base_digest: str | None) -> list[Published]:
    """The adapters of this base (None: of any), in order of their numbers. Unreadable ones are logged and left out."""
    published = []
    for _, path in list_names(root):
        try:
            manifest = read_manifest(path)
        except ManifestError as error:
            log.warning("%s is left out: %s", path.name, error)
            continue
        if base_digest in (None, manifest.base_digest) and not manifest.is_full:
            published.append(Published(manifest, path))
    return published


def next_number(root: Path, others: Iterable[int] = ()) -> int:
    """One more than any number in the directory or in `others` (rounds on record, the gateway's registry)."""
    return max([-1, *(number for number, _ in list_names(root)), *others]) + 1


def clean_unfinished(root: Path) -> list[str]:
    """Remove what a crash left half written, and return the names. Call it before anything is published."""
    if not root.is_dir():
        return []
    left = [path for path in root.iterdir() if path.name.startswith(UNFINISHED_PREFIX)]
    for path in left:
        shutil.rmtree(path)
    return sorted(path.name for path in left)


def remove_checkpoint(path: Path) -> None:
    """Remove a published directory: its name goes first, so that a crash leaves only what `clean_unfinished` takes."""
    doomed = path.with_name(f"{UNFINISHED_PREFIX}removed-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)
    log.info("checkpoint %s is removed", path.name)


def digest_base(base: str, revision: str = "") -> str:
    """sha256 over a directory's weights, config and tokenizer; for a hub id, over the id and its revision."""
    directory = Path(base)
    if not directory.is_dir():
        return hashlib.sha256(f"{base}@{revision}".encode()).hexdigest()
    paths = [*directory.glob("*.safetensors"), *(directory / name for name in _BASE_FILES)]
    return combine_hashes({path.name: hash_file(path) for path in paths if path.is_file()})


def digest_ids(event_ids: Iterable[str]) -> str:
    """sha256 over the sorted ids of the preferences that a checkpoint was trained on."""
    return hashlib.sha256("\n".join(sorted(event_ids)).encode()).hexdigest()
