"""The trainer's directory as a cache of the checkpoint store: uploaded, registered, removed, fetched anew."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from feedback.checkpoint_store import CheckpointStore, open_store
from feedback.checkpoint_store.store import BLOBS, name_blob
from feedback.database import write_transaction
from feedback.errors import StoreUnavailable
from feedback.manifest import SIGNATURE, Probe, verify
from feedback.signing import make_signing_key, parse_trusted_keys
from tests.trainer.fakes import FakeGateway
from tests.trainer.stores import open_empty
from trainer.run.publish.checkpoints import Draft, Published, list_published, publish_checkpoint
from trainer.run.publish.lineage import list_needed
from trainer.run.publish.registry import RegisteredCheckpoint, register_missing, remove_unneeded
from trainer.run.publish.stored import StoredCopies, fetch_published, wait_for_published
from trainer.run.rounds import Ending, begin_round, finish_round
from trainer.run.status.metrics import Metrics

DRAFT = Draft(
    number=0, parent=None, base_digest="base", rank=8, probe=Probe(prompt_token_ids=[1], logprobs=[], base_logprobs=[])
)


class StoreGateway(FakeGateway):
    """A gateway that registers what the store holds, and nothing else."""

    def __init__(self, store: CheckpointStore) -> None:
        super().__init__()
        self.store = store

    def register_stored(self, checkpoint: str) -> str:
        self._answer()
        manifest = self.store.read(checkpoint, None).manifest
        assert self.store.find_missing(manifest) == []
        self.known.append(RegisteredCheckpoint(manifest.id, manifest.number, manifest.digest, "retired"))
        return "retired"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return open_store(f"file://{tmp_path / 'store'}")


@pytest.fixture
def copies(store: CheckpointStore) -> StoredCopies:
    return StoredCopies(store, None, Metrics(), 3600.0, -1.0)


def publish(root: Path, number: int, **changes: object) -> Published:
    def write(directory: Path) -> None:
        (directory / "adapter_model.safetensors").write_bytes(bytes([number]))

    return publish_checkpoint(root, replace(DRAFT, number=number, **changes), write, now=5.0)


def list_all(root: Path) -> list[tuple[str, Path]]:
    return [(p.manifest.digest, p.path) for p in list_published(root, "base")]


def test_what_was_published_is_in_the_store_before_the_gateway_knows(
    tmp_path: Path, store: CheckpointStore, copies: StoredCopies
):
    gateway, root = StoreGateway(store), tmp_path / "checkpoints"
    publish(root, 0)
    publish(root, 1)
    assert len(register_missing(gateway, list_all(root), set(), copies)) == 2
    assert store.list_ids() == [row.id for row in gateway.known]
    assert register_missing(gateway, list_all(root), set(), copies) == []


def test_a_store_that_lost_a_checkpoint_gets_it_again_from_the_next_trainer(
    tmp_path: Path, store: CheckpointStore, copies: StoredCopies
):
    gateway, root = StoreGateway(store), tmp_path / "checkpoints"
    published = publish(root, 0)
    register_missing(gateway, list_all(root), set(), copies)
    store.delete(published.manifest.id)
    again = StoredCopies(store, None, Metrics(), 3600.0, -1.0)
    assert register_missing(gateway, list_all(root), set(), again) == []  # the gateway knows it
    assert store.has(published.manifest.id)


def test_while_the_store_is_away_nothing_is_registered(tmp_path: Path, store: CheckpointStore, copies: StoredCopies):
    gateway, root = StoreGateway(store), tmp_path / "checkpoints"
    publish(root, 0)
    (tmp_path / "store").write_bytes(b"no directory")
    with pytest.raises(StoreUnavailable):
        register_missing(gateway, list_all(root), set(), copies)
    assert gateway.known == []
    (tmp_path / "store").unlink()
    assert len(register_missing(gateway, list_all(root), set(), copies)) == 1


def test_what_the_gateway_gave_up_goes_from_directory_and_store_and_is_not_uploaded_again(
    tmp_path: Path, store: CheckpointStore, copies: StoredCopies
):
    gateway, root = StoreGateway(store), tmp_path / "checkpoints"
    for number in (0, 1):
        publish(root, number)
    register_missing(gateway, list_all(root), set(), copies)
    gateway.known[1] = replace(gateway.known[1], may_delete=True)
    left = list_all(root)
    assert remove_unneeded(gateway, root, copies) == [gateway.known[1].id]
    assert store.list_ids() == [gateway.known[0].id]
    assert register_missing(gateway, left, set(), copies) == remove_unneeded(gateway, root, copies) == []
    copies.collect()
    assert len(store.files.list_files(BLOBS)) == 1


def test_a_crash_between_giving_up_and_removing_is_made_up_for_by_a_trainer_without_the_directory(
    tmp_path: Path, store: CheckpointStore, copies: StoredCopies
):
    gateway, root = StoreGateway(store), tmp_path / "checkpoints"
    publish(root, 0)
    register_missing(gateway, list_all(root), set(), copies)
    gateway.known[0] = replace(gateway.known[0], status="deleted")
    again = StoredCopies(store, None, Metrics(), 3600.0, -1.0)
    assert remove_unneeded(gateway, tmp_path / "new", again) == [gateway.known[0].id]
    assert store.list_ids() == []


def test_what_learning_needs_stays_whatever_the_gateway_says(
    tmp_path: Path, store: CheckpointStore, copies: StoredCopies
):
    gateway, root = StoreGateway(store), tmp_path / "checkpoints"
    first = publish(root, 0)
    register_missing(gateway, list_all(root), set(), copies)
    gateway.known[0] = replace(gateway.known[0], may_delete=True)
    assert remove_unneeded(gateway, root, copies, frozenset({first.manifest.id})) == []
    assert first.path.is_dir() and store.has(first.manifest.id)


def test_learning_needs_the_first_checkpoint_and_the_reference_and_the_way_to_it_that_is_not_on_record(
    tmp_path: Path,
):
    first = publish(tmp_path, 0)
    older = publish(tmp_path, 1, parent=first.manifest.id, settings={"kind": "dpo"})
    reference = publish(tmp_path, 2, parent=older.manifest.id, settings={"kind": "sft"})
    middle = publish(tmp_path, 3, parent=reference.manifest.id, settings={"kind": "dpo"})
    stable = publish(tmp_path, 4, parent=middle.manifest.id, settings={"kind": "dpo"})
    other = publish(tmp_path, 5, parent=middle.manifest.id, settings={"kind": "dpo"})
    published = list_published(tmp_path, "base")
    names = {each.manifest.id for each in (first, reference, middle, stable)}
    closed = Ending(reason="", checkpoint=middle.manifest.id, details={"parent": reference.manifest.id})
    with open_empty(f"sqlite:{tmp_path / 'trainer.db'}") as database:
        assert list_needed(database, published, stable.manifest.digest) == names
        assert list_needed(database, published, "unknown") == {first.manifest.id} and other.path.is_dir()
        with write_transaction(database) as connection:
            opened = begin_round(connection, kind="dpo", last_preference_id=0, trigger_choice_at=0.0, now=0.0)
            finish_round(connection, opened.number, closed, 1.0)
        assert list_needed(database, published, stable.manifest.digest) == names - {middle.manifest.id}


def test_a_trainer_on_a_new_machine_fetches_what_it_learns_from(tmp_path: Path, store: CheckpointStore):
    old = [publish(tmp_path / "old", number) for number in (0, 1)]
    other_base = publish(tmp_path / "old", 2, base_digest="another")
    for each in (*old, other_base):
        store.put(each.path)
    root = tmp_path / "new"
    names = [each.manifest.id for each in old]
    assert fetch_published(store, root, "base", None) == names
    assert [each.manifest.id for each in list_published(root, "base")] == names
    assert verify(root / names[0]).number == 0
    assert fetch_published(store, root, "base", None) == []


def test_an_altered_checkpoint_is_left_out_and_holds_up_nothing(tmp_path: Path, store: CheckpointStore):
    bad, good = (publish(tmp_path / "old", number) for number in (0, 1))
    for each in (bad, good):
        store.put(each.path)
    store.files.write(name_blob(bad.manifest.files["adapter_model.safetensors"]), b"altered")
    assert fetch_published(store, tmp_path / "new", "base", None) == [good.manifest.id]
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith("c-")] == [good.manifest.id]


def test_a_trainer_waits_for_a_store_that_is_away_and_says_so(tmp_path: Path, store: CheckpointStore):
    (tmp_path / "store").write_bytes(b"no directory")
    stopping, said = threading.Event(), []

    def show(reason: str) -> None:
        said.append(reason)
        stopping.set()

    wait_for_published(store, tmp_path / "new", "base", None, stopping, show)
    assert len(said) == 1 and "does not answer" in said[0]


def test_what_is_published_is_signed_in_its_directory_and_in_the_store(tmp_path: Path, store: CheckpointStore):
    key = make_signing_key(tmp_path / "key.pem")
    trusted = parse_trusted_keys([key.public_pem])

    def write(directory: Path) -> None:
        (directory / "adapter_model.safetensors").write_bytes(b"w")

    published = publish_checkpoint(tmp_path / "checkpoints", DRAFT, write, now=5.0, key=key)
    assert (published.path / SIGNATURE).exists() and verify(published.path) == published.manifest
    StoredCopies(store, key, Metrics(), 3600.0, 0.0).upload(published.path)
    assert store.read(published.manifest.id, trusted).manifest == published.manifest
