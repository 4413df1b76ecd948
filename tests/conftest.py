"""Services that tests of several packages share: one each per session, started when the first test asks."""

from collections.abc import Iterator

import pytest

from tests.broker import find_kafka
from tests.postgres import run_database


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    with find_kafka() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with run_database() as url:
        yield url
