"""The checkpoint manifest, which the trainer writes last and the gateway reads first.

Promises: a directory with a manifest is complete, and `verify` proves that its files are the ones that were published
and that none of them can run code when loaded. Does not look inside the weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from feedback.durable import write_durably
from feedback.errors import ManifestError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"  # signing.py writes and reads it
CHECKPOINT_ID = re.compile(
    r"[ac]-\d{6,}-[0-9a-f]{12}"
)  # c: of a round; a: stable under a second name, for an A/A rollout
KINDS = ("lora", "full", "aa")
_HASH = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*"
)  # no "..", nothing hidden or absolute
REFUSED_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so")  # pickles and code


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt and what the checkpoint says of it: logprobs[i] is that of token i + 1 given the ones before it.

    logprobs: float32 with the adapter on; base_logprobs: with it off, so that an adapter that is ignored is noticed.
    """

    prompt_token_ids: list[int]
    logprobs: list[float]
    base_logprobs: list[float]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is and where it comes from.

    files: sha256 by relative path; digest: of all files; watermark: next offset of the log, by partition. kind: "lora",
    "full" for a whole model, or "aa" for the stable checkpoint under a second name. rank: 0 where there is no adapter.
    """

    id: str
    number: int
    parent: str | None
    base_digest: str
    rank: int
    digest: str
    files: dict[str, str]
    created_at: float
    probe: Probe
    kind: str = "lora"
    watermark: dict[int, int] = {}
    num_preferences: int = 0
    settings: dict[str, Any] = {}
    metrics: dict[str, float] = {}

    @property
    def base_logprobs(self) -> list[float]:
        """The probe's log-probabilities with the adapter off."""
        return self.probe.base_logprobs

    @property
    def is_full(self) -> bool:
        """Whether it holds a whole model, which needs an engine of its own, and not an adapter."""
        return self.kind == "full" or (self.kind == "aa" and self.rank == 0)


def checkpoint_id(number: int, digest: str) -> str:
    """`c-000001-<first 12 of the digest>`."""
    return f"c-{number:06d}-{digest[:12]}"


def hash_files(directory: Path) -> dict[str, str]:
    """sha256 of every file below `directory` but manifest and signature, by relative POSIX path. Raises ManifestError."""
    hashes: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise ManifestError(f"{name} is a link")
        if path.is_dir() or name in (MANIFEST, SIGNATURE):
            continue
        if path.suffix.lower() in REFUSED_SUFFIXES:
            raise ManifestError(f"{name}: only safetensors, JSON and text are taken")
        hashes[name] = hash_file(path)
    return hashes


def hash_file(path: Path) -> str:
    """sha256 of one file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combine_hashes(files: Mapping[str, str]) -> str:
    """The digest of a checkpoint: sha256 over its sorted `name NUL hash NEWLINE` lines, hexadecimal."""
    lines = "".join(f"{name}\0{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json: at once or not at all, and durable on return."""
    write_durably(directory / MANIFEST, encode_manifest(manifest))


def read_manifest(directory: Path) -> Manifest:
    """Read manifest.json. Raises ManifestError if it is missing or unreadable."""
    try:
        data = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise ManifestError(f"{directory}: no usable {MANIFEST}: {error}") from error
    return decode_manifest(data, str(directory))


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest's bytes. Raises ManifestError with `where` they are from."""
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: no usable {MANIFEST}: {error}") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json, which a signature is made of."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


def verify(directory: Path) -> Manifest:
    """Read the manifest and check every file against it. Raises ManifestError with the reason."""
    manifest = read_manifest(directory)
    found = hash_files(directory)
    for name in sorted(manifest.files.keys() | found.keys()):
        if name not in found:
            raise ManifestError(f"{name} is missing")
        if name not in manifest.files:
            raise ManifestError(f"{name} is not in the manifest")
        if found[name] != manifest.files[name]:
            raise ManifestError(f"{name} was altered")
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Check what a manifest says by itself, before any of its files is looked at. Raises ManifestError with the reason."""
    for name, digest in manifest.files.items():
        if len(name) > 200 or not _FILE_NAME.fullmatch(name) or name in (MANIFEST, SIGNATURE):
            raise ManifestError(f"{name[:200]!r} is no name for a checkpoint's file")
        if name.lower().endswith(REFUSED_SUFFIXES):
            raise ManifestError(f"{name}: only safetensors, JSON and text are taken")
        if not _HASH.fullmatch(digest):
            raise ManifestError(f"{name} has no sha256")
        if any(other.startswith(f"{name}/") for other in manifest.files):
            raise ManifestError(f"{name} is a file and a directory")
    if combine_hashes(manifest.files) != manifest.digest:
        raise ManifestError("the digest does not follow from the files")
    if manifest.kind != "aa" and manifest.id != checkpoint_id(manifest.number, manifest.digest):
        raise ManifestError(f"the id {manifest.id} does not follow from number and digest")
    if not CHECKPOINT_ID.fullmatch(manifest.id):
        raise ManifestError(f"{manifest.id[:80]!r} is no checkpoint's id")
    if manifest.kind not in KINDS:
        raise ManifestError(f"this release does not know checkpoints of kind {manifest.kind!r}")
    if manifest.is_full:
        _require_model(manifest)


def _require_model(manifest: Manifest) -> None:
    if manifest.rank != 0:
        raise ManifestError("whole weights have no rank")
    if "config.json" not in manifest.files:
        raise ManifestError("config.json is missing, which whole weights need")
    if not any(name.endswith(".safetensors") for name in manifest.files):
        raise ManifestError("no weights are there")
