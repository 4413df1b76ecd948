"""The rights that the manifests give each Kafka user are enough for what it does, and for no more: on a real broker that
authorises by them. Names and passwords go without TLS here; Strimzi turns KafkaUsers into these very rights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from feedback.errors import LogUnavailable
from feedback.log import Log, LogOptions, NewRecord, open_log
from prefloop.servers.ports import find_port
from tests.broker import run_broker
from tests.k8s.manifests import of_kind, render

TOPIC, DEAD_LETTERS, GROUP = "prefloop.feedback", "prefloop.feedback.dead-letters", "trainer"
PASSWORD = "secret-of-the-test"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A broker with the manifests' topics, users and rights; the port of its listener with passwords."""
    manifests = render("prod")
    users = of_kind(manifests, "KafkaUser")
    plain, secured, controller = find_port(), find_port(), find_port()
    addresses = f"PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{secured}"
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties = {
        "listeners": f"{addresses},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": addresses,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": login,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # who comes without a password: the broker, and the test's own admin
    }
    names = [user["metadata"]["name"] for user in users]
    scram = [part for name in names for part in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={PASSWORD}]")]
    with run_broker(port=plain, properties=properties, format_arguments=scram):
        with KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{plain}") as admin:
            admin.create_topics(
                {name: {"num_partitions": 1, "replication_factor": 1} for name in (TOPIC, DEAD_LETTERS)}
            )
            admin.create_acls([acl for user in users for acl in list_rights(user)])
        yield secured


def list_rights(user: dict[str, Any]) -> list[ACL]:
    """What Strimzi makes of a KafkaUser."""
    return [
        ACL(
            principal=f"User:{user['metadata']['name']}",
            host="*",
            operation=ACLOperation[operation.upper()],
            permission_type=ACLPermissionType.ALLOW,
            resource_pattern=ResourcePattern(ResourceType[rule["resource"]["type"].upper()], rule["resource"]["name"]),
        )
        for rule in user["spec"]["authorization"]["acls"]
        for operation in rule["operations"]
    ]


def log_of(port: int, user: str) -> Log:
    options = LogOptions(timeout_s=5.0, security="sasl_plaintext", sasl_username=user, sasl_password=PASSWORD)
    return open_log(f"kafka://127.0.0.1:{port}", options)


def test_each_user_can_do_its_work_and_nothing_else(port: int) -> None:
    gateway, trainer, keda = (log_of(port, user) for user in ("gateway", "trainer", "keda"))
    record = NewRecord(key=b"k", value=b"said")
    try:
        gateway.append(TOPIC, [record])
        member = trainer.join(GROUP, TOPIC)
        assert any(member.partitions() for _ in range(40))
        assert [each.value for each in trainer.read(TOPIC, 0, 0, 10, 5.0)] == [b"said"]
        trainer.commit(GROUP, TOPIC, {0: 1})
        trainer.append(DEAD_LETTERS, [record])
        assert [each.value for each in trainer.read(DEAD_LETTERS, 0, 0, 10, 5.0)] == [b"said"]
        assert keda.committed(GROUP, TOPIC) == {0: 1} and keda.bounds(TOPIC, 0) == (0, 1)
        for refused in (
            lambda: trainer.append(TOPIC, [record]),  # it learns from what people said, and says nothing itself
            lambda: gateway.append(DEAD_LETTERS, [record]),
            lambda: gateway.read(TOPIC, 0, 0, 10, 0.0),
            lambda: keda.read(TOPIC, 0, 0, 10, 0.0),
            lambda: keda.append(TOPIC, [record]),
        ):
            with pytest.raises(LogUnavailable):
                refused()
    finally:
        for log in (gateway, trainer, keda):
            log.close()
