"""A content-addressed store of checkpoints behind a URL: `blobs/sha256/<hex>` and `checkpoints/<id>/manifest.json`.

A checkpoint exists when its manifest does, which is written last. Nothing in the store is believed: names, hashes and
signature are checked by whoever reads. Says nothing of what may serve or be deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from feedback.checkpoint_store.remote_files import RemoteFiles
from feedback.checkpoint_store.uploads import announce_upload
from feedback.errors import ManifestError, StoreUnavailable, UnknownCheckpoint
from feedback.faults import reach
from feedback.manifest import (
    CHECKPOINT_ID,
    MANIFEST,
    SIGNATURE,
    Manifest,
    check_manifest,
    decode_manifest,
    verify,
)
from feedback.signing import SigningKey, TrustedKeys

BLOBS, CHECKPOINTS = "blobs/sha256", "checkpoints"
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_SIGNATURE_BYTES = 10_000


@dataclass(frozen=True)
class Stored:
    """A manifest whose own statements and signature hold, and the bytes it was read from. signature: None if not signed."""

    manifest: Manifest
    data: bytes
    signature: bytes | None


class CheckpointStore:
    """The checkpoints at one URL. Every method raises StoreUnavailable if the back end does not answer."""

    def __init__(self, url: str) -> None:
        self.files = RemoteFiles(url)

    @property
    def url(self) -> str:
        return self.files.url

    def locate(self, checkpoint: str) -> str:
        """The URL of a checkpoint, for people and tables."""
        return f"{self.url}/{CHECKPOINTS}/{checkpoint}"

    def list_ids(self) -> list[str]:
        """The ids of all checkpoints, also of those whose manifest is not written yet."""
        return [name for name in self.files.list_folders(CHECKPOINTS) if CHECKPOINT_ID.fullmatch(name)]

    def list_numbers(self) -> list[int]:
        """The numbers of all checkpoints, which no other may get."""
        return sorted({int(name.split("-")[1]) for name in self.list_ids()})

    def has(self, checkpoint: str) -> bool:
        """Whether the checkpoint is there: its manifest is."""
        return self.files.stat(_name_file(checkpoint, MANIFEST)) is not None

    def read(self, checkpoint: str, trusted: TrustedKeys | None) -> Stored:
        """Read a manifest and check it, by itself and by its signature if there are trusted keys.

        Raises UnknownCheckpoint; ManifestError with the reason for what must not be served.
        """
        try:
            data = self.files.read(_name_file(checkpoint, MANIFEST), MAX_MANIFEST_BYTES)
            signature = self.files.read(_name_file(checkpoint, SIGNATURE), MAX_SIGNATURE_BYTES)
        except ValueError as error:
            raise ManifestError(f"{checkpoint}: {error}") from error
        if data is None:
            raise UnknownCheckpoint(f"{self.url} holds no checkpoint {checkpoint}")
        if trusted is not None:
            trusted.check(data, signature)
        manifest = decode_manifest(data, self.locate(checkpoint))
        check_manifest(manifest)
        if manifest.id != checkpoint:
            raise ManifestError(f"the manifest of {checkpoint} is that of {manifest.id}")
        return Stored(manifest, data, signature)

    def find_missing(self, manifest: Manifest) -> list[str]:
        """The files of a checkpoint whose blobs are not there."""
        return [name for name, digest in manifest.files.items() if self.files.stat(name_blob(digest)) is None]

    def put(self, directory: Path, key: SigningKey | None = None) -> bool:
        """Upload a published directory, blobs first and the manifest last; False if it was there.

        key: signs it; without one, the directory's own signature goes along. Blobs that are there are not sent again. Killed
        at any point, it leaves nothing that can be read as a checkpoint, and may be repeated. Raises ManifestError if the
        directory is not what its manifest says, or another checkpoint has its id.
        """
        manifest = verify(directory)
        data = (directory / MANIFEST).read_bytes()
        signature = key.sign(data) if key is not None else _read_signature(directory)
        before = self.files.read(_name_file(manifest.id, MANIFEST), MAX_MANIFEST_BYTES)
        if before is not None and before != data:
            raise ManifestError(f"{self.url} holds another checkpoint {manifest.id}")
        if before is not None and all(self._holds(directory / name, file) for name, file in manifest.files.items()):
            if signature is not None:
                self._sign(manifest.id, signature)
            return False
        with announce_upload(self.files, manifest.id):
            for name, digest in manifest.files.items():
                if not self._holds(directory / name, digest):
                    self.files.upload(directory / name, name_blob(digest))
                reach("store.blob")
            if signature is not None:
                self._sign(manifest.id, signature)
            reach("store.blobs")
            self.files.write(_name_file(manifest.id, MANIFEST), data)
        return True

    def sign(self, checkpoint: str, key: SigningKey) -> None:
        """Sign a checkpoint that is there. Raises UnknownCheckpoint, ManifestError."""
        self._sign(checkpoint, key.sign(self.read(checkpoint, None).data))

    def delete(self, checkpoint: str) -> None:
        """Remove a checkpoint: its manifest first. Its blobs are left to the collection. Harmless to repeat."""
        for name in (MANIFEST, SIGNATURE):
            self.files.remove(_name_file(checkpoint, name))
        self.files.remove_folder(f"{CHECKPOINTS}/{checkpoint}")

    def _holds(self, path: Path, digest: str) -> bool:
        """Whether a blob is there and as long as the file it is of."""
        there = self.files.stat(name_blob(digest))
        return there is not None and there.size == path.stat().st_size and not there.is_link

    def _sign(self, checkpoint: str, signature: bytes) -> None:
        name = _name_file(checkpoint, SIGNATURE)
        if self.files.read(name, MAX_SIGNATURE_BYTES) != signature:
            self.files.write(name, signature)


def open_store(url: str) -> CheckpointStore:
    """Open the store at an fsspec URL; nothing is asked of it yet. Raises StoreUnavailable if the URL cannot be meant."""
    try:
        return CheckpointStore(url)
    except StoreUnavailable as error:
        if isinstance(error.__cause__, ImportError):
            raise StoreUnavailable(f"{error}: install prefloop[s3] or prefloop[gcs]") from error
        raise


def name_blob(digest: str) -> str:
    """Where the content with this sha256 lies."""
    return f"{BLOBS}/{digest}"


def _name_file(checkpoint: str, name: str) -> str:
    if not CHECKPOINT_ID.fullmatch(checkpoint):
        raise ManifestError(f"{checkpoint[:80]!r} is no checkpoint's id")
    return f"{CHECKPOINTS}/{checkpoint}/{name}"


def _read_signature(directory: Path) -> bytes | None:
    try:
        return (directory / SIGNATURE).read_bytes()
    except FileNotFoundError:
        return None
