"""What people and operators create before pods can start, as the guide and the custom resources say it."""

from k8s.rehearsal.stand_ins import list_needs, list_secrets, read_guide

GUIDE = """
    kubectl -n prefloop create secret generic prefloop-keys \\
      --from-literal=trainer=$(prefloop keys create trainer) \\
      --from-literal=sync=$(prefloop keys create sync)
    kubectl -n prefloop create configmap prefloop-trusted-keys --from-file=keys.pem     # for gateways
    kubectl -n prefloop create secret generic postgres-trainer --type=kubernetes.io/basic-auth --from-file=key.pem=signing.pem
"""


def test_the_guides_commands_say_which_keys_a_secret_has() -> None:
    assert read_guide(GUIDE) == [
        ("secrets", "prefloop-keys", ("trainer", "sync")),
        ("configmaps", "prefloop-trusted-keys", ("keys.pem",)),
        ("secrets", "postgres-trainer", ("key.pem",)),
    ]


def test_a_kafka_users_secret_carries_the_prefix_of_its_cluster() -> None:
    kafka = {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "Kafka",
        "metadata": {"name": "feedback"},
        "spec": {"entityOperator": {"userOperator": {"secretPrefix": "kafka-user-"}}},
    }
    user = {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaUser",
        "metadata": {"name": "gateway"},
        "spec": {"authentication": {"type": "scram-sha-512"}},
    }
    secrets = list_secrets([user, kafka])
    assert secrets["kafka-user-gateway"] == ("password", "sasl.jaas.config")
    assert secrets["feedback-cluster-ca-cert"] == ("ca.crt", "ca.p12", "ca.password")


def test_a_pod_needs_what_it_mounts_and_reads_and_not_what_is_optional() -> None:
    variable = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "database", "key": "password"}}}
    optional = {"name": "B", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token", "optional": True}}}
    spec = {
        "serviceAccountName": "trainer",
        "containers": [
            {"name": "trainer", "envFrom": [{"configMapRef": {"name": "settings"}}], "env": [variable, optional]}
        ],
        "volumes": [
            {"name": "state", "persistentVolumeClaim": {"claimName": "state"}},
            {"name": "key", "secret": {"secretName": "keys", "items": [{"key": "trainer", "path": "admin_key"}]}},
            {
                "name": "both",
                "projected": {"sources": [{"secret": {"name": "own", "items": [{"key": "a", "path": "b"}]}}]},
            },
        ],
    }
    assert list_needs(spec) == [
        ("ServiceAccount", "trainer", set()),
        ("PersistentVolumeClaim", "state", set()),
        ("Secret", "keys", {"trainer"}),
        ("Secret", "own", {"a"}),
        ("ConfigMap", "settings", set()),
        ("Secret", "database", {"password"}),
    ]
