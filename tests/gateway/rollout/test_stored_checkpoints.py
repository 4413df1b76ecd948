"""Checkpoints that a store holds: registered by id, checked without their weights, copied for A/A trials, kept while needed."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from operator_client import open_client
from world import World

from feedback.checkpoint_store import CheckpointStore, open_store
from feedback.checkpoint_store.store import name_blob
from feedback.manifest import read_manifest
from feedback.signing import make_signing_key
from gateway.settings import GatewaySettings
from tests.feedback.checkpoint_store.samples import make_directory

CHECKPOINTS = "/operator/v1/checkpoints"


class StoreWorld:
    """A world whose checkpoints are kept in a store."""

    def __init__(self, world: World, folder: Path, trusted_keys_file: str = "") -> None:
        self.world, self.folder = world, folder
        self.url = f"file://{folder / 'store'}"
        update = {"checkpoints_url": self.url, "trusted_keys_file": trusted_keys_file}
        world.settings = world.settings.model_copy(update=update)
        world.restart()
        self.store: CheckpointStore = open_store(self.url)

    def put(self, number: int) -> str:
        directory = make_directory(self.folder, number, bytes([number]))
        self.store.put(directory)
        return directory.name


@pytest.fixture
def stored(make_world: Callable[..., World], tmp_path: Path) -> StoreWorld:
    return StoreWorld(make_world(keep_checkpoints=1, baking_s=0.0), tmp_path)


@pytest.fixture
async def client(stored: StoreWorld) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(stored.world) as client:
        client.headers["authorization"] = "Bearer admin"
        yield client


async def test_a_checkpoint_of_the_store_is_registered_by_its_id(stored: StoreWorld, client: httpx.AsyncClient) -> None:
    name = stored.put(1)
    answers = [await client.post(CHECKPOINTS, json={"checkpoint": name}) for _ in range(2)]
    assert [(answer.status_code, answer.json()["id"]) for answer in answers] == [(201, name), (200, name)]
    (row,) = (await client.get(CHECKPOINTS)).json()["data"]
    assert (row["stored_as"], row["kind"], row["may_serve"], row["is_full"]) == (name, "lora", True, False)
    shown = (await client.get(f"{CHECKPOINTS}/{name}")).json()
    assert shown["path"] == f"{stored.url}/checkpoints/{name}"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"checkpoint": "c-000009-0123456789ab"}, "holds no checkpoint"),
        ({"checkpoint": "../secrets"}, "is no checkpoint's id"),
        ({"path": "/tmp"}, "registered by the id"),
        ({"checkpoint": "c-000009-0123456789ab", "path": "/tmp"}, "Give the checkpoint's id"),
        ({}, "Give the checkpoint's id"),
    ],
)
async def test_what_is_no_checkpoint_of_the_store_is_refused(
    client: httpx.AsyncClient, body: dict[str, str], said: str
) -> None:
    answer = await client.post(CHECKPOINTS, json=body)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


async def test_a_checkpoint_without_one_of_its_files_is_refused(stored: StoreWorld, client: httpx.AsyncClient) -> None:
    name = stored.put(1)
    blob = name_blob(read_manifest(stored.folder / name).files["adapter_model.safetensors"])
    stored.store.files.remove(blob)
    answer = await client.post(CHECKPOINTS, json={"checkpoint": name})
    assert answer.status_code == 400 and "is missing in the store" in answer.json()["error"]["message"]


async def test_while_the_store_is_away_the_gateway_says_to_come_again(
    stored: StoreWorld, client: httpx.AsyncClient
) -> None:
    (stored.folder / "store").write_bytes(b"no directory")
    answer = await client.post(CHECKPOINTS, json={"checkpoint": "c-000009-0123456789ab"})
    assert answer.status_code == 503 and "retry-after" not in answer.json()


async def test_what_no_trusted_key_signed_is_not_registered(make_world: Callable[..., World], tmp_path: Path) -> None:
    key, other = (make_signing_key(tmp_path / name) for name in ("key.pem", "other.pem"))
    (tmp_path / "trusted.pem").write_bytes(key.public_pem)
    stored = StoreWorld(make_world(), tmp_path, str(tmp_path / "trusted.pem"))
    name = stored.put(1)
    async with open_client(stored.world) as client:
        client.headers["authorization"] = "Bearer admin"
        for signer, status in ((None, 400), (other, 400), (key, 201)):
            if signer is not None:
                stored.store.sign(name, signer)
            answer = await client.post(CHECKPOINTS, json={"checkpoint": name})
            assert answer.status_code == status, answer.text


async def test_an_unsigned_directory_is_refused_once_keys_are_trusted(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    key = make_signing_key(tmp_path / "key.pem")
    (tmp_path / "trusted.pem").write_bytes(key.public_pem)
    world = make_world()
    world.settings = world.settings.model_copy(update={"trusted_keys_file": str(tmp_path / "trusted.pem")})
    world.restart()
    directory = make_directory(tmp_path, 1)
    async with open_client(world) as client:
        client.headers["authorization"] = "Bearer admin"
        answer = await client.post(CHECKPOINTS, json={"path": str(directory)})
        assert answer.status_code == 400 and "not signed" in answer.json()["error"]["message"]
        (directory / "manifest.sig").write_bytes(key.sign((directory / "manifest.json").read_bytes()))
        assert (await client.post(CHECKPOINTS, json={"path": str(directory)})).status_code == 201


async def test_an_aa_copy_has_stables_files_and_keeps_them(stored: StoreWorld, client: httpx.AsyncClient) -> None:
    world, first = stored.world, stored.put(1)
    await client.post(CHECKPOINTS, json={"checkpoint": first})
    await world.tick()
    copy = (await client.post("/operator/v1/rollouts", json={"aa": True})).json()["id"]
    assert copy.startswith("a-000002-")
    rows = {row["id"]: row for row in (await client.get(CHECKPOINTS)).json()["data"]}
    assert (rows[copy]["stored_as"], rows[copy]["kind"], rows[copy]["may_serve"]) == (first, "aa", True)
    assert rows[copy]["digest"] == rows[first]["digest"] and stored.store.list_ids() == [first]
    for _ in range(2):
        await world.tick()
    await client.post(f"/operator/v1/rollouts/{(await world.row()).id}:promote", json={"note": "Test."})
    for _ in range(4):
        await world.tick()
    again = (await client.post("/operator/v1/rollouts", json={"aa": True})).json()["id"]  # a copy of the copy
    rows = {row["id"]: row for row in (await client.get(CHECKPOINTS)).json()["data"]}
    assert rows[copy]["status"] == "stable" and rows[again]["stored_as"] == first
    assert rows[first]["may_delete"] is False


def test_a_store_without_the_engines_directory_is_refused() -> None:
    with pytest.raises(Exception, match="engine_checkpoints_dir"):
        GatewaySettings(checkpoints_url="s3://bucket/prefix")
    assert GatewaySettings(checkpoints_url="s3://bucket", gateway={"engines": []}).checkpoints_url  # type: ignore[arg-type]
