"""What tests of several packages share: services, one each per session, and an environment without settings."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import find_kafka
from tests.postgres import run_database
from tests.s3 import find_s3
from tests.seed_policy import find_seed_policy

KEPT = ("PREFLOOP_TEST_", "PREFLOOP_CACHE_DIR", "PREFLOOP_KAFKA_HEAP")


@pytest.fixture(scope="session", autouse=True)
def no_settings() -> Iterator[None]:
    """Neither the user's variables nor a prefloop.toml in the checkout reach a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFLOOP_") and not name.startswith(KEPT)]:
            patch.delenv(name)
        patch.setenv("PREFLOOP_CONFIG", os.devnull)
        yield


@pytest.fixture(scope="session")
def seed_policy() -> Path:
    return find_seed_policy()


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    with find_kafka() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with run_database() as url:
        yield url


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    with find_s3() as url:
        yield url
