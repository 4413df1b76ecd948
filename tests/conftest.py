"""What tests of several packages share: services, one each per session, and an environment without settings."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import find_kafka
from tests.postgres import run_database
from tests.seed_policy import find_seed_policy

TESTS = Path(__file__).parent
TOGETHER = ("end_to_end", "browser", "clients", "feedback/log")  # folders that share an engine, a browser, a broker
KEPT = ("PREFLOOP_TEST_", "PREFLOOP_CACHE_DIR", "PREFLOOP_KAFKA_HEAP")


@pytest.hookimpl(wrapper=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """What shares something costly runs in one process, the longest first; else each file by itself."""
    for item in items:
        place = str(item.path.relative_to(TESTS))
        group = next((folder for folder in TOGETHER if place.startswith(f"{folder}/")), place)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not item.path.is_relative_to(TESTS / "end_to_end"))
    yield


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
