"""Every way in which a checkpoint can be torn, tampered with or only half there: none ever gets its name beside an engine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from feedback.checkpoint_store import (
    CheckpointStore,
    collect_blobs,
    fetch_checkpoint,
    list_fetched,
    open_store,
    remove_fetched,
    verify_fetched,
)
from feedback.checkpoint_store.store import BLOBS, CHECKPOINTS, name_blob
from feedback.checkpoint_store.uploads import UPLOADS
from feedback.errors import ManifestError, SignatureError, UnknownCheckpoint
from feedback.manifest import MANIFEST, SIGNATURE, Manifest, encode_manifest, read_manifest
from feedback.signing import SigningKey, TrustedKeys, make_signing_key, parse_trusted_keys
from tests.feedback.checkpoint_store.samples import make_directory, make_manifest

HASH = "0" * 64


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return make_signing_key(tmp_path / "key.pem")


@pytest.fixture
def trusted(key: SigningKey) -> TrustedKeys:
    return parse_trusted_keys([key.public_pem])


def refuse(store: CheckpointStore, name: str, root: Path, why: str, trusted: TrustedKeys | None = None) -> None:
    """Fetching is refused with this reason, and nothing has the checkpoint's name."""
    with pytest.raises(ManifestError, match=why):
        fetch_checkpoint(store, name, root, trusted)
    assert list_fetched(root) == []


def write_manifest(store: CheckpointStore, manifest: Manifest) -> None:
    """What an intruder with access to the store could write."""
    store.files.write(f"{CHECKPOINTS}/{manifest.id}/{MANIFEST}", encode_manifest(manifest))


@pytest.mark.parametrize("point", ["store.blob", "store.blobs"])
def test_an_upload_killed_at_a_boundary_is_no_checkpoint_and_the_next_one_finishes_it(
    url: str, store: CheckpointStore, directory: Path, root: Path, point: str
):
    process = [sys.executable, "-m", "tests.feedback.checkpoint_store.publishing_process", url, str(directory)]
    killed = subprocess.run(process, env={**os.environ, "PREFLOOP_FAULTS": f"{point}=1"}, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert store.files.list_files(BLOBS) != [] and not store.has(directory.name)
    with pytest.raises(UnknownCheckpoint):
        fetch_checkpoint(store, directory.name, root, None)
    assert list_fetched(root) == []
    assert store.put(directory)
    verify_fetched(fetch_checkpoint(store, directory.name, root, None), None)


def test_an_upload_killed_inside_a_file_leaves_nothing_under_the_files_name(
    url: str, store: CheckpointStore, tmp_path: Path, root: Path
):
    large = make_directory(tmp_path / "published", 7, os.urandom(96 * 2**20))
    blob = name_blob(read_manifest(large).files["adapter_model.safetensors"])
    process = [sys.executable, "-m", "tests.feedback.checkpoint_store.publishing_process", url, str(large)]
    child = subprocess.Popen(process, stdout=subprocess.PIPE)
    while not store.files.list_files(UPLOADS):  # it has begun
        assert child.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    child.kill()
    was_killed = child.wait() == -9
    there = store.files.stat(blob)
    assert there is None or there.size == 96 * 2**20
    if was_killed:
        assert not store.has(large.name)
    assert store.put(large) or not was_killed
    verify_fetched(fetch_checkpoint(store, large.name, root, None), None)
    later = time.time() + 1000.0  # what was left is collected, what is needed is not
    assert collect_blobs(store, 500.0, lambda: later, dead_upload_s=500.0).reason == ""
    assert store.files.list_files(UPLOADS) == [] and store.find_missing(read_manifest(large)) == []


def test_a_manifest_without_its_blobs_is_refused(store: CheckpointStore, directory: Path, root: Path):
    write_manifest(store, read_manifest(directory))
    refuse(store, directory.name, root, "is missing in the store")
    assert len(store.find_missing(read_manifest(directory))) == 2


@pytest.mark.parametrize("content", [b"weightz", b"weigh", b"", b"weights and more"], ids=repr)
def test_a_blob_that_is_not_what_its_name_says_is_refused(
    store: CheckpointStore, directory: Path, root: Path, content: bytes
):
    store.put(directory)
    store.files.write(name_blob(read_manifest(directory).files["adapter_model.safetensors"]), content)
    refuse(store, directory.name, root, "was altered in the store")
    refuse(store, directory.name, root, "was altered in the store")  # nothing of the first try is believed


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "sub/../../x", ".hidden", "a//b", "a\\b", "a\nb", "", MANIFEST, SIGNATURE, "x/", "./x", "é"],
    ids=repr,
)
def test_a_name_that_leads_elsewhere_is_refused(store: CheckpointStore, root: Path, name: str):
    manifest = make_manifest({name: HASH})
    write_manifest(store, manifest)
    refuse(store, manifest.id, root, "is no name for a checkpoint's file")
    assert not root.exists() or list(root.iterdir()) == []


@pytest.mark.parametrize("name", ["model.bin", "a/weights.PKL", "model.pt", "run.py"])
def test_pickles_and_code_are_refused(store: CheckpointStore, root: Path, name: str):
    manifest = make_manifest({name: HASH})
    write_manifest(store, manifest)
    refuse(store, manifest.id, root, "only safetensors, JSON and text")


def test_a_file_that_is_a_directory_too_is_refused(store: CheckpointStore, root: Path):
    manifest = make_manifest({"a": HASH, "a/b": HASH})
    write_manifest(store, manifest)
    refuse(store, manifest.id, root, "a file and a directory")


def test_a_hash_that_leads_elsewhere_is_refused(store: CheckpointStore, root: Path):
    manifest = make_manifest({"a.json": "../../secrets/admin_key"})
    write_manifest(store, manifest)
    refuse(store, manifest.id, root, "has no sha256")


def test_the_manifest_of_another_checkpoint_is_refused(store: CheckpointStore, directory: Path, root: Path):
    store.put(directory)
    data = store.files.read(f"{CHECKPOINTS}/{directory.name}/{MANIFEST}", 10_000)
    assert data is not None
    store.files.write(f"{CHECKPOINTS}/c-000009-0123456789ab/{MANIFEST}", data)
    refuse(store, "c-000009-0123456789ab", root, f"is that of {directory.name}")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[" * 100_000, b"\xff", b"{}", b"null"], ids=["", "{", "[[[", "ff", "{}", "null"]
)
def test_a_manifest_that_cannot_be_read_is_refused(store: CheckpointStore, root: Path, data: bytes):
    store.files.write(f"{CHECKPOINTS}/c-000001-0123456789ab/{MANIFEST}", data)
    refuse(store, "c-000001-0123456789ab", root, "no usable manifest")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"digest": HASH}, "does not follow from the files"),
        ({"id": "c-000002-0123456789ab"}, "does not follow from number and digest"),
        ({"kind": "pickled"}, "does not know checkpoints of kind"),
        ({"kind": "full"}, "have no rank"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    store: CheckpointStore, directory: Path, root: Path, changes: dict[str, str], why: str
):
    manifest = msgspec.structs.replace(read_manifest(directory), **changes)
    write_manifest(store, manifest)
    refuse(store, manifest.id, root, why)


@pytest.mark.parametrize("name", ["..", "../x", "c-000001-0123456789ab/../x", "", "c-1-x"], ids=repr)
def test_an_id_that_leads_elsewhere_is_refused(store: CheckpointStore, directory: Path, root: Path, name: str):
    with pytest.raises(ManifestError):
        store.read(name, None)
    store.put(directory)
    with pytest.raises(ManifestError):
        fetch_checkpoint(store, directory.name, root, None, name=name or "..")
    assert list_fetched(root) == []


def test_a_link_in_place_of_a_blob_is_refused(tmp_path: Path, directory: Path, root: Path):
    store = open_store(f"file://{tmp_path / 'store'}")  # an object store has no links
    store.put(directory)
    blob = tmp_path / "store" / name_blob(read_manifest(directory).files["adapter_model.safetensors"])
    elsewhere = blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(elsewhere)
    refuse(store, directory.name, root, "is a link")


def test_a_link_in_a_published_directory_is_not_uploaded(store: CheckpointStore, directory: Path):
    (directory / "link.json").symlink_to("/etc/passwd")
    with pytest.raises(ManifestError, match="is a link"):
        store.put(directory)
    assert store.list_ids() == []


def test_what_is_not_signed_is_refused_once_keys_are_trusted(
    store: CheckpointStore, directory: Path, root: Path, trusted: TrustedKeys
):
    store.put(directory)
    refuse(store, directory.name, root, "it is not signed", trusted)


def test_what_a_trusted_key_signed_is_taken(
    store: CheckpointStore, directory: Path, root: Path, key: SigningKey, trusted: TrustedKeys
):
    store.put(directory, key)
    fetched = fetch_checkpoint(store, directory.name, root, trusted)
    verify_fetched(fetched, trusted)


def test_what_another_key_signed_is_refused(
    store: CheckpointStore, directory: Path, root: Path, tmp_path: Path, trusted: TrustedKeys
):
    store.put(directory, make_signing_key(tmp_path / "other.pem"))
    refuse(store, directory.name, root, "which is not trusted", trusted)


def test_a_signature_of_other_bytes_is_refused(
    store: CheckpointStore, directory: Path, root: Path, key: SigningKey, trusted: TrustedKeys
):
    store.put(directory, key)
    write_manifest(store, msgspec.structs.replace(read_manifest(directory), num_preferences=7))
    refuse(store, directory.name, root, "is wrong", trusted)


@pytest.mark.parametrize("data", [b"", b"{}", b"junk", b'{"key": "x", "signature": "!"}'], ids=repr)
def test_a_signature_that_cannot_be_read_is_refused(
    store: CheckpointStore, directory: Path, root: Path, key: SigningKey, trusted: TrustedKeys, data: bytes
):
    store.put(directory, key)
    store.files.write(f"{CHECKPOINTS}/{directory.name}/{SIGNATURE}", data)
    refuse(store, directory.name, root, "signature cannot be read", trusted)


def test_signing_what_is_there_makes_it_good(
    store: CheckpointStore, directory: Path, root: Path, key: SigningKey, trusted: TrustedKeys
):
    store.put(directory)
    store.sign(directory.name, key)
    verify_fetched(fetch_checkpoint(store, directory.name, root, trusted), trusted)


def test_a_digest_other_than_the_gateway_knows_is_refused(store: CheckpointStore, directory: Path, root: Path):
    store.put(directory)
    with pytest.raises(ManifestError, match="has the digest"):
        fetch_checkpoint(store, directory.name, root, None, digest=HASH)
    assert list_fetched(root) == []


def test_a_fetched_directory_that_changed_on_disk_is_noticed(
    store: CheckpointStore, directory: Path, root: Path, key: SigningKey, trusted: TrustedKeys
):
    store.put(directory, key)
    fetched = fetch_checkpoint(store, directory.name, root, trusted)
    (fetched / SIGNATURE).unlink()
    with pytest.raises(SignatureError):
        verify_fetched(fetched, trusted)
    remove_fetched(root, fetched.name)
    fetched = fetch_checkpoint(store, directory.name, root, trusted)
    (fetched / "adapter_model.safetensors").write_bytes(b"weightz")
    with pytest.raises(ManifestError, match="was altered"):
        verify_fetched(fetched, trusted)
