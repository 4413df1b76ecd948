"""The Kafka log over TLS and with SASL, against a real broker with certificates made for the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from feedback.errors import LogUnavailable
from feedback.log import LogOptions, NewRecord, open_log
from prefloop.servers.ports import find_port
from tests.broker import name_topic, run_broker

PASSWORD = "secret-of-the-test"
SUBJECT = "/CN=127.0.0.1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate in a PKCS#12 store, and a client's in PEM files."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    make = ["req", "-newkey", "rsa:2048", "-nodes", "-keyout"]
    openssl(folder, *make, "ca.key", "-x509", "-days", "2", "-subj", "/CN=authority", "-out", "ca.pem")
    for name in ("server", "client"):
        openssl(folder, *make, f"{name}.key", "-subj", SUBJECT, "-out", f"{name}.csr")
        sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")
    pack = ["pkcs12", "-export", "-passout", f"pass:{PASSWORD}", "-in", "server.pem", "-inkey", "server.key"]
    openssl(folder, *pack, "-certfile", "ca.pem", "-out", "server.p12")
    return folder


def openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def ports(certificates: Path) -> Iterator[dict[str, int]]:
    """The secured listeners of a broker, by protocol."""
    ports = {name: find_port() for name in ("SASL_PLAINTEXT", "SSL", "SASL_SSL")}
    plain, controller = find_port(), find_port()
    shown = {"PLAINTEXT": plain, **ports}
    addresses = [f"{name}://127.0.0.1:{port}" for name, port in shown.items()]
    protocols = ",".join(f"{name}:{name}" for name in shown)
    jaas = "org.apache.kafka.common.security"
    properties = {
        "listeners": ",".join([*addresses, f"CONTROLLER://127.0.0.1:{controller}"]),
        "advertised.listeners": ",".join(addresses),
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "listener.security.protocol.map": f"{protocols},CONTROLLER:PLAINTEXT",
        "ssl.keystore.location": str(certificates / "server.p12"),
        "ssl.keystore.password": PASSWORD,
        "ssl.keystore.type": "PKCS12",
        "ssl.truststore.location": str(certificates / "ca.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.client.auth": "required",
        "listener.name.sasl_ssl.ssl.client.auth": "none",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
    }
    for listener in ("sasl_plaintext", "sasl_ssl"):
        prefix = f"listener.name.{listener}"
        for mechanism in ("scram-sha-256", "scram-sha-512"):
            properties[f"{prefix}.{mechanism}.sasl.jaas.config"] = f"{jaas}.scram.ScramLoginModule required;"
        login = f'{jaas}.plain.PlainLoginModule required user_prefloop="{PASSWORD}";'
        properties[f"{prefix}.plain.sasl.jaas.config"] = login
    users = [f"{name}=[name=prefloop,password={PASSWORD}]" for name in ("SCRAM-SHA-256", "SCRAM-SHA-512")]
    format_arguments = [part for user in users for part in ("--add-scram", user)]
    with run_broker(port=plain, properties=properties, format_arguments=format_arguments):
        yield ports


def carry(port: int, options: LogOptions) -> None:
    """Send a record through every kind of client: the one that asks, the producer, the reader, the member."""
    log, topic = open_log(f"kafka://127.0.0.1:{port}", options), name_topic()
    try:
        log.append(topic, [NewRecord(key=b"k", value=b"safe")])
        found = [r.value for p in log.partitions(topic) for r in log.read(topic, p, 0, 10, 0.0)]
        assert found == [b"safe"]
        member = log.join(topic, topic)
        assert any(member.partitions() for _ in range(40))
    finally:
        log.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_opens_the_log(ports: dict[str, int], mechanism: str) -> None:
    options = LogOptions(
        security="sasl_plaintext",
        sasl_mechanism=mechanism,  # type: ignore[arg-type]
        sasl_username="prefloop",
        sasl_password=PASSWORD,
    )
    carry(ports["SASL_PLAINTEXT"], options)


def test_a_wrong_password_is_refused_and_never_shown(ports: dict[str, int]) -> None:
    options = LogOptions(
        timeout_s=3.0, security="sasl_plaintext", sasl_username="prefloop", sasl_password="a-wrong-one"
    )
    with pytest.raises(LogUnavailable) as caught:
        carry(ports["SASL_PLAINTEXT"], options)
    assert "a-wrong-one" not in str(caught.value) + repr(options)


def test_a_clients_certificate_opens_the_log(ports: dict[str, int], certificates: Path) -> None:
    options = LogOptions(
        security="ssl",
        ca_file=str(certificates / "ca.pem"),
        cert_file=str(certificates / "client.pem"),
        key_file=str(certificates / "client.key"),
    )
    carry(ports["SSL"], options)
    with pytest.raises(LogUnavailable):
        carry(ports["SSL"], replace(options, timeout_s=3.0, cert_file="", key_file=""))


def test_a_password_over_tls_opens_the_log_and_a_strange_authority_does_not(
    ports: dict[str, int], certificates: Path
) -> None:
    options = LogOptions(
        security="sasl_ssl",
        ca_file=str(certificates / "ca.pem"),
        sasl_username="prefloop",
        sasl_password=PASSWORD,
    )
    carry(ports["SASL_SSL"], options)
    with pytest.raises(LogUnavailable):
        carry(ports["SASL_SSL"], replace(options, timeout_s=3.0, ca_file=""))
