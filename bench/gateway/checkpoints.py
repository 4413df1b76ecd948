"""Checkpoints without weights, and the walk that brings them into service: one stable, one on trial as a canary.

The mock's probe answers for every one of them (PROBE_TOKENS and their log-probabilities are written in mock.c).
"""

import time
from pathlib import Path
from typing import Any

import httpx

from feedback.manifest import Manifest, Probe, checkpoint_id, combine_hashes, hash_files, write_manifest

PROBE_TOKENS = [5, 7, 9, 11]
PROBE_LOGPROBS = [-1.0, -2.0, -0.5]
BASE_LOGPROBS = [-4.0, -4.0, -4.0]
PROBE = Probe(prompt_token_ids=PROBE_TOKENS, logprobs=PROBE_LOGPROBS, base_logprobs=BASE_LOGPROBS)
_TIMEOUT_S = 60.0
_ENOUGH = 16  # connections that all agree


def make_checkpoint(folder: Path, number: int, *, parent: str | None = None, probe: Probe = PROBE) -> Path:
    """A checkpoint directory whose adapter is 16 bytes, for engines that answer `probe`; returns its path."""
    draft = folder / f"draft-{number}"
    draft.mkdir(parents=True)
    (draft / "adapter_config.json").write_text('{"r": 8}')
    (draft / "adapter_model.safetensors").write_bytes(bytes([number] * 16))
    files = hash_files(draft)
    digest = combine_hashes(files)
    final = draft.rename(folder / checkpoint_id(number, digest))
    manifest = Manifest(
        id=final.name,
        number=number,
        parent=parent,
        base_digest="0" * 64,
        rank=8,
        digest=digest,
        files=files,
        created_at=time.time(),
        probe=probe,
    )
    write_manifest(final, manifest)
    return final


def serve_two_arms(admin: httpx.Client, folder: Path) -> None:
    """Register two checkpoints and wait until the first is stable and the second on trial. Raises TimeoutError."""
    for number, arm in enumerate(("stable", "canary")):
        path = make_checkpoint(folder, number)
        admin.post("/operator/v1/checkpoints", json={"path": str(path)}).raise_for_status()
        _wait_for(arm, admin)


def make_key(admin: httpx.Client, name: str, **fields: Any) -> str:
    """A new key's whole text; `fields` go into the request as they are."""
    answer = admin.post("/operator/v1/keys", json={"name": name, "scope": "app", **fields})
    answer.raise_for_status()
    return str(answer.json()["key"])


def _wait_for(arm: str, admin: httpx.Client) -> None:
    """Until every worker has it: the kernel gives each new connection to any of them."""
    deadline = time.monotonic() + _TIMEOUT_S
    num_in_a_row = 0
    while time.monotonic() < deadline:
        status = admin.get("/operator/v1/status", headers={"connection": "close"}).raise_for_status().json()
        num_in_a_row = num_in_a_row + 1 if status[arm] is not None else 0
        if num_in_a_row == _ENOUGH:
            return
        if not num_in_a_row:
            time.sleep(0.1)
    raise TimeoutError(f"the gateway has no {arm} after {_TIMEOUT_S:.0f} s")
