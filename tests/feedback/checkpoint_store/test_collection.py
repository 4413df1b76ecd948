"""Collection: what nothing names goes, nothing that is needed does, whatever happens at the same time."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from feedback.checkpoint_store import CheckpointStore, collect_blobs, fetch_checkpoint, open_store, verify_fetched
from feedback.checkpoint_store.store import BLOBS, CHECKPOINTS, name_blob
from feedback.checkpoint_store.uploads import COLLECTIONS, UPLOADS, announce_collection, announce_upload
from feedback.errors import ManifestError, StoreUnavailable
from feedback.manifest import MANIFEST, SIGNATURE, read_manifest
from tests.feedback.checkpoint_store.samples import make_directory

DAY_S = 86_400.0


def later(seconds: float):
    return lambda: time.time() + seconds


def test_only_what_no_checkpoint_names_is_collected(store: CheckpointStore, tmp_path: Path, root: Path):
    kept, given_up = (make_directory(tmp_path / "published", n, bytes([n])) for n in (1, 2))
    store.put(kept)
    store.put(given_up)
    assert collect_blobs(store, 60.0, later(120.0)).num_blobs == 0
    store.delete(given_up.name)
    assert collect_blobs(store, 60.0, later(120.0), is_dry_run=True).num_blobs == 1
    collected = collect_blobs(store, 60.0, later(120.0))
    assert (collected.num_blobs, collected.num_bytes, collected.reason) == (1, 1, "")
    assert len(store.files.list_files(BLOBS)) == 2  # the shared configuration, and the weights of what is kept
    verify_fetched(fetch_checkpoint(store, kept.name, root, None), None)


def test_what_is_younger_than_the_grace_period_stays(store: CheckpointStore):
    store.files.write(name_blob("a" * 64), b"of an upload that has no manifest yet")
    assert collect_blobs(store, 60.0).num_blobs == 0
    assert collect_blobs(store, 60.0, later(120.0)).num_blobs == 1


def test_while_an_upload_is_under_way_nothing_is_collected(store: CheckpointStore):
    store.files.write(name_blob("a" * 64), b"found by the upload, so not sent again")
    with announce_upload(store.files, "c-000001-0123456789ab"):
        collected = collect_blobs(store, DAY_S, later(DAY_S / 2))
        assert (collected.num_blobs, collected.reason) == (0, "an upload or another collection is under way")
    assert store.files.list_files(UPLOADS) == store.files.list_files(COLLECTIONS) == []


def test_an_upload_waits_for_a_collection_to_end(store: CheckpointStore):
    waited: list[float] = []
    with announce_collection(store.files, DAY_S, time.time) as may_begin:
        assert may_begin

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            for file in store.files.list_files(COLLECTIONS):
                store.files.remove(file.name)  # it ends

        with announce_upload(store.files, "c-000001-0123456789ab", sleep=sleep):
            assert len(waited) == 1


def test_marks_of_the_dead_hold_up_nobody(store: CheckpointStore):
    store.files.write(f"{UPLOADS}/c-000001-0123456789ab-1", b"")
    store.files.write(f"{COLLECTIONS}/1", b"")
    with announce_upload(store.files, "c-000002-0123456789ab", clock=later(1000.0), sleep=pytest.fail):
        pass
    assert collect_blobs(store, DAY_S, later(1000.0)).reason != ""  # the upload may live
    assert collect_blobs(store, DAY_S, later(DAY_S + 1000.0)).reason == ""
    assert store.files.list_files(UPLOADS) == store.files.list_files(COLLECTIONS) == []


def test_a_manifest_that_cannot_be_read_stops_the_collection(store: CheckpointStore, directory: Path):
    store.put(directory)
    store.files.write(f"{CHECKPOINTS}/c-000009-0123456789ab/{MANIFEST}", b"{")
    collected = collect_blobs(store, 0.0, later(10.0))
    assert collected.num_blobs == 0 and "cannot be read" in collected.reason
    with pytest.raises(ManifestError):
        store.read("c-000009-0123456789ab", None)


def test_what_cannot_be_listed_stops_the_collection(store: CheckpointStore, directory: Path, monkeypatch):
    store.put(directory)

    def fail(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(store.files._fs, "ls", fail)
    with pytest.raises(StoreUnavailable):
        collect_blobs(store, -1.0)
    monkeypatch.undo()
    assert store.find_missing(read_manifest(directory)) == []


def test_a_signature_without_a_manifest_is_collected(store: CheckpointStore):
    store.files.write(f"{CHECKPOINTS}/c-000009-0123456789ab/{SIGNATURE}", b"{}")
    assert collect_blobs(store, 60.0, later(120.0)).num_blobs == 1
    assert store.files.list_files(CHECKPOINTS) == []


def test_an_upload_in_parts_that_was_never_finished_is_ended(s3_url: str):
    store = open_store(f"{s3_url}/parts")
    files = store.files
    files._fs.call_s3("create_multipart_upload", Bucket=files._root.split("/")[0], Key="parts/blobs/sha256/" + "a" * 64)
    assert collect_blobs(store, 60.0, later(120.0)).num_uploads == 0
    assert collect_blobs(store, 60.0, later(DAY_S + 60.0)).num_uploads == 1
    assert collect_blobs(store, 60.0, later(DAY_S + 60.0)).num_uploads == 0


def test_uploads_and_collections_at_the_same_time_lose_nothing(
    url: str, store: CheckpointStore, tmp_path: Path, root: Path
):
    """The same weights are given up and published again, over and over, while whatever is not named is collected at once."""
    published = [make_directory(tmp_path / "published", n, bytes([n % 2])) for n in range(1, 5)]
    is_over, collected, failures = threading.Event(), [0], []

    def collect() -> None:
        own = open_store(url)
        while not is_over.is_set():
            collected[0] += collect_blobs(own, -1.0).num_blobs
            time.sleep(0.2)  # an upload that waits looks twice a second

    def publish(seed: int) -> None:
        own, rng = open_store(url), random.Random(seed)
        mine = published[seed::2]
        for _ in range(4):
            directory = rng.choice(mine)
            own.put(directory)
            if missing := own.find_missing(read_manifest(directory)):
                failures.append((directory.name, missing))
            own.delete(directory.name)

    collector = threading.Thread(target=collect)
    publishers = [threading.Thread(target=publish, args=(seed,)) for seed in (0, 1)]
    for thread in (collector, *publishers):
        thread.start()
    for thread in publishers:
        thread.join()
    is_over.set()
    collector.join()
    assert failures == []
    for directory in published:
        store.put(directory)
        verify_fetched(fetch_checkpoint(store, directory.name, root, None), None)
