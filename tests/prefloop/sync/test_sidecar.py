"""The sidecar beside an engine: what may serve is there, verified; what may not is gone; what is torn never gets its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from feedback.checkpoint_store import CheckpointStore, list_fetched, open_store
from feedback.checkpoint_store.store import name_blob
from feedback.errors import StoreUnavailable
from feedback.manifest import read_manifest, verify
from feedback.signing import make_signing_key, parse_trusted_keys
from prefloop.sync.metrics import SyncMetrics
from prefloop.sync.sidecar import GatewayAway, ListedCheckpoint, Sidecar
from tests.feedback.checkpoint_store.samples import make_directory


@dataclass
class Fleet:
    """A store, what a gateway says of it, and a sidecar with a clock of the test's own."""

    root: Path
    store: CheckpointStore
    rows: list[ListedCheckpoint] = field(default_factory=list)
    is_away: bool = False
    now: float = 0.0
    metrics: SyncMetrics = field(default_factory=SyncMetrics)

    def __post_init__(self) -> None:
        self.trusted = None
        self.sidecar = self.start()

    def start(self) -> Sidecar:
        return Sidecar(self.store, self.root, self.list_rows, self.trusted, self.metrics, 60.0, lambda: self.now)

    def list_rows(self) -> list[ListedCheckpoint]:
        if self.is_away:
            raise GatewayAway("connection refused")
        return self.rows

    def publish(self, folder: Path, number: int, status: str, **changes: object) -> ListedCheckpoint:
        directory = make_directory(folder, number, bytes([number]))
        self.store.put(directory)
        digest = read_manifest(directory).digest
        row = ListedCheckpoint(directory.name, digest, status, may_serve=True, stored_as=directory.name)
        self.rows.append(msgspec.structs.replace(row, **changes))
        return self.rows[-1]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "engine", open_store(f"file://{tmp_path / 'store'}"))


def test_what_may_serve_is_fetched_and_what_may_not_is_removed(fleet: Fleet, tmp_path: Path) -> None:
    stable, canary = fleet.publish(tmp_path, 1, "stable"), fleet.publish(tmp_path, 2, "canary")
    fleet.publish(tmp_path, 3, "retired", may_serve=False)
    fleet.publish(tmp_path, 4, "waiting", is_full=True)  # whoever starts its engine fetches it
    assert fleet.sidecar.problem
    fleet.sidecar.reconcile()
    assert list_fetched(fleet.root) == [stable.id, canary.id] and fleet.sidecar.problem == ""
    fleet.rows[1] = msgspec.structs.replace(canary, status="retired", may_serve=False)
    fleet.sidecar.reconcile()
    assert list_fetched(fleet.root) == [stable.id]
    assert fleet.metrics.registry.get_sample_value("prefloop_sync_fetches_total") == 2
    assert fleet.metrics.registry.get_sample_value("prefloop_sync_removals_total") == 1


def test_an_aa_copy_is_stables_files_under_its_own_name(fleet: Fleet, tmp_path: Path) -> None:
    stable = fleet.publish(tmp_path, 1, "stable")
    fleet.rows.append(msgspec.structs.replace(stable, id="a-000002-0123456789ab", status="canary"))
    fleet.sidecar.reconcile()
    assert verify(fleet.root / "a-000002-0123456789ab").digest == stable.digest


def test_while_the_gateway_is_away_what_is_there_stays(fleet: Fleet, tmp_path: Path) -> None:
    fleet.publish(tmp_path, 1, "stable")
    fleet.sidecar.reconcile()
    fleet.is_away = True
    with pytest.raises(GatewayAway):
        fleet.sidecar.reconcile()
    assert len(list_fetched(fleet.root)) == 1 and fleet.sidecar.problem == ""


def test_while_the_store_is_away_what_is_there_stays_and_the_rest_comes_later(fleet: Fleet, tmp_path: Path) -> None:
    stable = fleet.publish(tmp_path, 1, "stable")
    fleet.sidecar.reconcile()
    fleet.publish(tmp_path, 2, "canary")
    place = tmp_path / "store"
    away = place.rename(tmp_path / "away")
    place.write_bytes(b"no directory")
    with pytest.raises(StoreUnavailable):
        fleet.sidecar.reconcile()
    assert list_fetched(fleet.root) == [stable.id] and fleet.sidecar.problem == ""
    place.unlink()
    away.rename(place)
    fleet.sidecar.reconcile()
    assert len(list_fetched(fleet.root)) == 2


def test_an_altered_canary_is_refused_and_keeps_nobody_from_being_ready(fleet: Fleet, tmp_path: Path) -> None:
    stable, canary = fleet.publish(tmp_path, 1, "stable"), fleet.publish(tmp_path, 2, "canary")
    blob = name_blob(read_manifest(tmp_path / canary.id).files["adapter_model.safetensors"])
    fleet.store.files.write(blob, b"altered")
    fleet.sidecar.reconcile()
    assert list_fetched(fleet.root) == [stable.id] and fleet.sidecar.problem == ""
    assert "altered" in fleet.sidecar.refused[canary.id].reason
    fleet.store.files.write(blob, bytes([2]))
    fleet.sidecar.reconcile()
    assert list_fetched(fleet.root) == [stable.id]  # not tried again yet
    fleet.now = 61.0
    fleet.sidecar.reconcile()
    assert list_fetched(fleet.root) == [stable.id, canary.id] and fleet.sidecar.refused == {}
    assert fleet.metrics.registry.get_sample_value("prefloop_sync_refusals_total") == 1


def test_without_what_serves_it_is_not_ready_and_says_why(fleet: Fleet, tmp_path: Path) -> None:
    stable = fleet.publish(tmp_path, 1, "stable")
    fleet.store.delete(stable.id)
    fleet.sidecar.reconcile()
    assert stable.id in fleet.sidecar.problem and "holds no checkpoint" in fleet.sidecar.problem


def test_what_no_trusted_key_signed_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    key = make_signing_key(tmp_path / "key.pem")
    signed, unsigned = fleet.publish(tmp_path, 1, "stable"), fleet.publish(tmp_path, 2, "canary")
    fleet.store.sign(signed.id, key)
    fleet.trusted = parse_trusted_keys([key.public_pem])
    sidecar = fleet.start()
    sidecar.reconcile()
    assert list_fetched(fleet.root) == [signed.id] and "not signed" in sidecar.refused[unsigned.id].reason


def test_what_changed_on_disk_is_fetched_again_after_a_start(fleet: Fleet, tmp_path: Path) -> None:
    stable = fleet.publish(tmp_path, 1, "stable")
    fleet.sidecar.reconcile()
    (fleet.root / stable.id / "adapter_model.safetensors").write_bytes(b"torn")
    again = fleet.start()
    again.check_present()
    assert list_fetched(fleet.root) == []
    again.reconcile()
    verify(fleet.root / stable.id)


def test_a_checkpoint_whose_digest_is_not_the_gateways_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    fleet.publish(tmp_path, 1, "stable", digest="0" * 64)
    fleet.sidecar.reconcile()
    assert list_fetched(fleet.root) == [] and "has the digest" in fleet.sidecar.problem
