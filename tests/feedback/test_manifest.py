from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from feedback.errors import ManifestError
from feedback.manifest import (
    Manifest,
    Probe,
    checkpoint_id,
    combine_hashes,
    hash_files,
    read_manifest,
    verify,
    write_manifest,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "adapter_config.json").write_text("{}")
    write_manifest(tmp_path, make_manifest(tmp_path))
    return tmp_path


def make_manifest(directory: Path) -> Manifest:
    files = hash_files(directory)
    digest = combine_hashes(files)
    return Manifest(
        id=checkpoint_id(1, digest),
        number=1,
        parent=None,
        base_digest="b" * 64,
        rank=16,
        digest=digest,
        files=files,
        created_at=1.5,
        probe=Probe(prompt_token_ids=[1, 2, 3], logprobs=[-1.0, -2.0], base_logprobs=[-1.5, -2.5]),
        watermark={0: 3, 2: 7},
    )


def test_manifest_comes_back_as_written(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest == verify(directory)
    assert manifest.watermark == {0: 3, 2: 7}
    assert manifest.base_logprobs == [-1.5, -2.5]
    assert manifest.files.keys() == {"adapter_model.safetensors", "sub/adapter_config.json"}
    assert sorted(path.name for path in directory.iterdir()) == ["adapter_model.safetensors", "manifest.json", "sub"]


def test_digest_is_sha256_over_names_and_hashes() -> None:
    expected = hashlib.sha256(b"a\x0011\nb\x0022\n").hexdigest()
    assert combine_hashes({"b": "22", "a": "11"}) == expected
    assert checkpoint_id(12, expected) == f"c-000012-{expected[:12]}"


def test_altered_file_is_noticed(directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"weightz")
    with pytest.raises(ManifestError, match="was altered"):
        verify(directory)


def test_missing_file_is_noticed(directory: Path) -> None:
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(ManifestError, match="is missing"):
        verify(directory)


def test_additional_file_is_noticed(directory: Path) -> None:
    (directory / "extra.json").write_text("{}")
    with pytest.raises(ManifestError, match="not in the manifest"):
        verify(directory)


@pytest.mark.parametrize("name", ["adapter_model.bin", "a.pt", "sub/b.PKL", "modeling.py"])
def test_files_that_may_run_code_are_refused(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"")
    with pytest.raises(ManifestError, match="only safetensors"):
        verify(directory)


def test_links_are_refused(directory: Path) -> None:
    (directory / "link.json").symlink_to("/etc/hostname")
    with pytest.raises(ManifestError, match="is a link"):
        verify(directory)


@pytest.mark.parametrize(("field", "value"), [("digest", "0" * 64), ("id", "c-000009-000000000000"), ("number", 2)])
def test_fields_that_do_not_follow_from_the_files_are_refused(directory: Path, field: str, value: object) -> None:
    write_manifest(directory, msgspec.structs.replace(read_manifest(directory), **{field: value}))
    with pytest.raises(ManifestError, match="does not follow"):
        verify(directory)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_unusable_manifest_is_an_error_of_ours(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"no usable manifest\.json"):
        read_manifest(tmp_path)


def publish_whole(directory: Path, *names: str, rank: int = 0, kind: str = "full") -> Path:
    for name in names:
        (directory / name).write_text("{}")
    write_manifest(directory, msgspec.structs.replace(make_manifest(directory), kind=kind, rank=rank))
    return directory


def test_a_whole_model_is_told_from_an_adapter_and_so_is_its_copy(tmp_path: Path) -> None:
    whole = verify(publish_whole(tmp_path, "config.json", "model.safetensors"))
    assert whole.is_full
    assert msgspec.structs.replace(whole, kind="aa").is_full
    assert not msgspec.structs.replace(whole, kind="aa", rank=16).is_full
    assert not msgspec.structs.replace(whole, kind="lora", rank=16).is_full


@pytest.mark.parametrize(
    ("names", "rank", "reason"),
    [
        (("model.safetensors",), 0, "config.json is missing"),
        (("config.json",), 0, "no weights"),
        (("config.json", "model.safetensors"), 16, "no rank"),
    ],
)
def test_a_whole_model_that_no_engine_could_serve_is_refused(
    tmp_path: Path, names: tuple[str, ...], rank: int, reason: str
) -> None:
    with pytest.raises(ManifestError, match=reason):
        verify(publish_whole(tmp_path, *names, rank=rank))


def test_a_kind_that_this_release_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="kind 'moe'"):
        verify(publish_whole(tmp_path, "config.json", "model.safetensors", kind="moe"))
