"""Checkpoint directories to publish, small and whole."""

from __future__ import annotations

from pathlib import Path

from feedback.manifest import Manifest, Probe, checkpoint_id, combine_hashes, hash_files, write_manifest

WEIGHTS = b"weights"


def make_manifest(files: dict[str, str], number: int = 1, **changes: object) -> Manifest:
    digest = combine_hashes(files)
    values = {
        "id": checkpoint_id(number, digest),
        "number": number,
        "parent": None,
        "base_digest": "b" * 64,
        "rank": 16,
        "digest": digest,
        "files": files,
        "created_at": 1.5,
        "probe": Probe(prompt_token_ids=[1, 2], logprobs=[-1.0], base_logprobs=[-2.0]),
    }
    return Manifest(**(values | changes))


def make_directory(root: Path, number: int = 1, weights: bytes = WEIGHTS, **changes: object) -> Path:
    """A published directory below `root`, under its checkpoint's id."""
    draft = root / f"draft-{number}"
    (draft / "sub").mkdir(parents=True)
    (draft / "adapter_model.safetensors").write_bytes(weights)
    (draft / "sub" / "adapter_config.json").write_text("{}")
    if changes.get("kind") == "full":
        (draft / "config.json").write_text('{"whole": true}')
    manifest = make_manifest(hash_files(draft), number, **changes)
    write_manifest(draft, manifest)
    return draft.rename(root / manifest.id)
