"""Every test of the store runs on a file system and on a real S3 server."""

from pathlib import Path

import pytest

from feedback.checkpoint_store import CheckpointStore, open_store
from tests.feedback.checkpoint_store.samples import make_directory
from tests.s3 import name_store

KINDS = ("file", "s3")


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path / 'store'}"
    return name_store(request.getfixturevalue("s3_url"))


@pytest.fixture
def store(url: str) -> CheckpointStore:
    return open_store(url)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A published checkpoint that is not in the store yet."""
    return make_directory(tmp_path / "published")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where an engine's sidecar keeps what it fetched."""
    return tmp_path / "engine"
