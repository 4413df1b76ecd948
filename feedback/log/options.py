"""How to reach a Kafka cluster, and how the topics are made that it lacks. The embedded log needs none of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Security = Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Settings of the section `kafka`.

    timeout_s bounds every call. ca_file, cert_file and key_file are PEM; without a ca_file the system's authorities are
    trusted. replication_factor -1 and min_insync_replicas 0 leave the choice to the cluster; retention_ms -1 keeps
    records for ever.
    """

    timeout_s: float = 30.0
    security: Security = "plaintext"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: str = ""
    session_timeout_s: float = 10.0
    partitions: int = 4
    replication_factor: int = -1
    min_insync_replicas: int = 0
    retention_ms: int = -1

    def __repr__(self) -> str:
        return f"LogOptions(security={self.security!r}, sasl_username={self.sasl_username!r})"  # never the password
