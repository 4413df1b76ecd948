"""A Kafka broker for tests: the one that PREFLOOP_TEST_KAFKA names, or one started for the session and thrown away.

Skips with its reason where there is none; in CI (environment CI=true) that is a failure.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition

from feedback.log.sqlite import SqliteLog
from prefloop.servers.kafka import Broker, check_programs


@contextlib.contextmanager
def find_kafka() -> Iterator[str]:
    """The URL of a cluster in which tests may make topics."""
    given = os.environ.get("PREFLOOP_TEST_KAFKA")
    if given:
        yield given if "://" in given else f"kafka://{given}"
        return
    with run_broker() as broker:
        yield broker.url


@contextlib.contextmanager
def run_broker(**arguments: object) -> Iterator[Broker]:
    """A broker of the test's own, which it may kill, hang and start again."""
    missing = check_programs()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    folder = Path(tempfile.mkdtemp(prefix="prefloop-kafka-"))
    broker = Broker(folder, **arguments)  # type: ignore[arg-type]
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
        shutil.rmtree(folder)


def name_topic() -> str:
    """A topic that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


def forget_before(url: str, topic: str, partition: int, offset: int) -> None:
    """What retention does."""
    if url.startswith("sqlite:"):
        embedded = SqliteLog(url)
        embedded.delete_before(topic, partition, offset)
        embedded.close()
        return
    with KafkaAdminClient(bootstrap_servers=url.partition("://")[2]) as admin:
        admin.delete_records({TopicPartition(topic, partition): offset})
