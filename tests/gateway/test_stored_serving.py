"""A gateway, a sidecar and a real S3 server: what is torn or tampered with in the store never answers anybody."""

import asyncio
from pathlib import Path

import msgspec
from aiohttp import web
from conftest import run_gateway, wait_until
from engine import FakeEngine

from bench.gateway.checkpoints import make_checkpoint
from feedback.checkpoint_store import open_store
from feedback.checkpoint_store.store import name_blob
from feedback.manifest import read_manifest
from feedback.signing import make_signing_key, read_trusted_keys
from prefloop.sync.metrics import SyncMetrics
from prefloop.sync.process import build_lister
from prefloop.sync.sidecar import Sidecar
from tests.s3 import name_store


class FetchingEngine(FakeEngine):
    """Loads what lies in its own file system, as vLLM does."""

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not (Path(body["lora_path"]) / "manifest.json").is_file():
            return web.json_response({"error": {"message": f"No adapter found for {body['lora_path']}"}}, status=404)
        return await super()._load(request)


async def test_a_good_checkpoint_serves_and_a_bad_one_never_does(s3_url: str, tmp_path: Path) -> None:
    url, root = name_store(s3_url), tmp_path / "engine"
    key = make_signing_key(tmp_path / "key.pem")
    (tmp_path / "trusted.pem").write_bytes(key.public_pem)
    trusted = read_trusted_keys(str(tmp_path / "trusted.pem"))
    shared = {"checkpoints_url": url, "trusted_keys_file": str(tmp_path / "trusted.pem")}
    store = open_store(url)
    async with run_gateway(
        tmp_path, has_checkpoint=False, engine_checkpoints_dir=str(root), shared=shared, engine=FetchingEngine()
    ) as gateway:
        (tmp_path / "operator").write_text(await gateway.make_key("operator", name="sync"))
        lister = build_lister(gateway.url, tmp_path / "operator")
        sidecar = Sidecar(store, root, lister, trusted, SyncMetrics(), 0.0)

        async def register(name: str) -> int:
            body = {"checkpoint": name}
            async with gateway.http.post(
                f"{gateway.url}/operator/v1/checkpoints", json=body, headers=gateway.admin
            ) as answer:
                return answer.status

        good, torn = (make_checkpoint(tmp_path / "published", number) for number in (0, 1))
        store.put(good)
        assert await register(good.name) == 400  # nobody signed it
        store.sign(good.name, key)
        assert await register(good.name) == 201
        await asyncio.sleep(0.5)
        assert gateway.engine.adapters == set()  # the sidecar has not fetched it
        await asyncio.to_thread(sidecar.reconcile)
        await wait_until(lambda: gateway.context.deployment.view.stable == good.name)
        assert (await gateway.ask())["model"] == "default"

        store.put(torn, key)
        blob = name_blob(next(iter(read_manifest(torn).files.values())))
        store.files.write(blob, b"tampered with")
        assert await register(torn.name) == 201  # the gateway reads no weights
        for _ in range(5):
            await asyncio.to_thread(sidecar.reconcile)
            await asyncio.sleep(0.2)
        assert "was altered in the store" in sidecar.refused[torn.name].reason and sidecar.problem == ""
        assert gateway.engine.loads == [good.name] and not (root / torn.name).exists()
        assert gateway.context.deployment.view.canary is None
        assert (await gateway.ask())["model"] == "default"
        forged = msgspec.structs.replace(read_manifest(torn), num_preferences=7)
        store.files.write(f"checkpoints/{torn.name}/manifest.json", msgspec.json.encode(forged))
        await asyncio.to_thread(sidecar.reconcile)
        assert "signature" in sidecar.refused[torn.name].reason
