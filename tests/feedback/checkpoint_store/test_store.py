"""The contract of the checkpoint store, the same over files and over S3."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from feedback.checkpoint_store import CheckpointStore, fetch_checkpoint, list_fetched, open_store, verify_fetched
from feedback.checkpoint_store.store import BLOBS, name_blob
from feedback.errors import ManifestError, StoreUnavailable, UnknownCheckpoint
from feedback.manifest import read_manifest, verify
from tests.feedback.checkpoint_store.samples import WEIGHTS, make_directory


def test_what_was_put_is_listed_read_and_fetched_as_it_was(store: CheckpointStore, directory: Path, root: Path):
    assert store.list_ids() == []
    assert store.put(directory)
    assert store.list_ids() == [directory.name] and store.has(directory.name)
    assert store.read(directory.name, None).manifest == read_manifest(directory)
    fetched = fetch_checkpoint(store, directory.name, root, None)
    assert fetched == root / directory.name and verify(fetched).id == directory.name
    assert (fetched / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (fetched / "sub" / "adapter_config.json").read_text() == "{}"
    assert list_fetched(root) == [directory.name] and os.listdir(root) == [directory.name]


def test_putting_twice_changes_nothing(store: CheckpointStore, directory: Path):
    assert store.put(directory)
    before = sorted(store.files.list_files(BLOBS), key=lambda file: file.name)
    assert not store.put(directory)
    assert sorted(store.files.list_files(BLOBS), key=lambda file: file.name) == before


def test_files_that_two_checkpoints_share_are_kept_once(store: CheckpointStore, directory: Path):
    other = make_directory(directory.parent, 2, b"other weights")
    store.put(directory)
    store.put(other)
    assert len(store.files.list_files(BLOBS)) == 3  # two weights, one configuration


def test_a_checkpoint_that_is_not_there_is_unknown(store: CheckpointStore, root: Path):
    with pytest.raises(UnknownCheckpoint):
        store.read("c-000001-0123456789ab", None)
    with pytest.raises(UnknownCheckpoint):
        fetch_checkpoint(store, "c-000001-0123456789ab", root, None)
    assert not root.exists()


def test_a_deleted_checkpoint_is_gone_and_deleting_again_does_no_harm(store: CheckpointStore, directory: Path):
    store.put(directory)
    store.delete(directory.name)
    store.delete(directory.name)
    assert store.list_ids() == []
    with pytest.raises(UnknownCheckpoint):
        store.read(directory.name, None)


def test_fetching_what_is_there_asks_nothing_of_the_store(store: CheckpointStore, directory: Path, root: Path):
    store.put(directory)
    fetched = fetch_checkpoint(store, directory.name, root, None)
    store.delete(directory.name)
    assert fetch_checkpoint(store, directory.name, root, None) == fetched


def test_a_file_larger_than_a_part_arrives_whole_and_is_counted(store: CheckpointStore, tmp_path: Path, root: Path):
    weights = os.urandom(40 * 2**20 + 1)  # three blocks, and several parts of an upload
    large = make_directory(tmp_path / "published", 3, weights)
    store.put(large)
    counted: list[int] = []
    fetched = fetch_checkpoint(store, large.name, root, None, count=counted.append)
    assert (fetched / "adapter_model.safetensors").read_bytes() == weights
    assert sum(counted) == len(weights) + 2 and max(counted) <= 16 * 2**20


def test_a_checkpoint_is_fetched_under_a_second_name(store: CheckpointStore, directory: Path, root: Path):
    store.put(directory)
    name = "a-000002-0123456789ab"
    fetched = fetch_checkpoint(store, directory.name, root, None, name=name, digest=read_manifest(directory).digest)
    assert fetched.name == name and verify(fetched).id == directory.name
    verify_fetched(fetched, None)


def test_a_fetch_that_was_killed_goes_on_where_it_stopped(store: CheckpointStore, directory: Path, root: Path):
    store.put(directory)
    partial = root / f".unfinished-{directory.name}"
    (partial / "sub").mkdir(parents=True)
    (partial / "adapter_model.safetensors").write_bytes(WEIGHTS)  # whole already
    (partial / "sub" / "adapter_config.json").write_bytes(b"half")
    (partial / "other.json").write_bytes(b"of nobody")
    (partial / "link.json").symlink_to("/etc/passwd")
    counted: list[int] = []
    fetched = fetch_checkpoint(store, directory.name, root, None, count=counted.append)
    assert counted == [2]
    verify_fetched(fetched, None)


def test_another_checkpoint_with_the_same_id_is_refused(store: CheckpointStore, directory: Path, tmp_path: Path):
    store.put(directory)
    other = make_directory(tmp_path / "other", created_at=9.0)
    assert other.name == directory.name
    with pytest.raises(ManifestError, match="holds another checkpoint"):
        store.put(other)


def test_a_directory_that_is_not_what_its_manifest_says_is_not_uploaded(store: CheckpointStore, directory: Path):
    (directory / "adapter_model.safetensors").write_bytes(b"altered")
    with pytest.raises(ManifestError, match="was altered"):
        store.put(directory)
    assert store.list_ids() == [] and store.files.list_files(BLOBS) == []


def test_a_blob_that_lost_its_end_is_sent_again(store: CheckpointStore, directory: Path):
    digest = read_manifest(directory).files["adapter_model.safetensors"]
    store.files.write(name_blob(digest), WEIGHTS[:3])
    for _ in range(2):  # before there is a manifest, and after
        assert store.put(directory)
        assert store.files.read(name_blob(digest), 100) == WEIGHTS
        store.files.write(name_blob(digest), WEIGHTS[:3])


def test_a_store_that_cannot_be_meant_is_refused_in_words():
    with pytest.raises(StoreUnavailable, match="nosuch"):
        open_store("nosuch://bucket")


def test_whole_models_are_kept_like_adapters(store: CheckpointStore, tmp_path: Path, root: Path):
    whole = make_directory(tmp_path / "published", 4, kind="full", rank=0)
    store.put(whole)
    assert verify(fetch_checkpoint(store, whole.name, root, None)).is_full
