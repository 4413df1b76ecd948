"""The kafka-python clients behind a log: made when first needed, thrown away after a failure.

Promises: every call ends within its time, whatever the library does, and raises LogUnavailable and nothing else for a
cluster that does not answer. kafka-python's constructors fail while the broker is down, and some of its calls wait for
ever when it hangs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import BrokerResponseError, KafkaError, NotCoordinatorError, RetriableError

from feedback.errors import LogUnavailable
from feedback.log.options import LogOptions

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0  # of the first connection; a broker that is down is noticed by then
CLOSE_TIMEOUT_S = 2.0
RETRY_S = 0.1
MIN_DELAY_MS = 50.0  # of a look at a broker that is not connected; what arrives ends the wait at once
MAX_REQUEST_BYTES = 4 << 20  # of a record too; the topic's max.message.bytes allows as much
FAILURES = (KafkaError, OSError, RuntimeError, ValueError)  # what kafka-python raises for a cluster that is not well

logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it logs every attempt; what matters is raised, and logged there


def call_within(timeout_s: float, fn: Callable[[], T]) -> T:
    """Run `fn` in a thread that may be given up. Raises TimeoutError after timeout_s, else what `fn` raises."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(fn())
        except BaseException as error:  # handed to the caller
            done.set_exception(error)

    threading.Thread(target=work, name="kafka-call", daemon=True).start()
    return done.result(timeout_s)


def close_later(client: Any, *, timeout: dict[str, float] | None = None) -> threading.Thread:
    """Close a client in the background, whatever comes of it."""

    def work() -> None:
        with contextlib.suppress(Exception):
            client.close(**(timeout or {}))

    thread = threading.Thread(target=work, name="kafka-close", daemon=True)
    thread.start()
    return thread


def close_consumer(consumer: KafkaConsumer | None) -> threading.Thread | None:
    """Close a consumer in the background, if there is one; it leaves its group within CLOSE_TIMEOUT_S."""
    return None if consumer is None else close_later(consumer, timeout={"timeout_ms": 1000 * CLOSE_TIMEOUT_S})


class KafkaClients:
    """Makes clients for `servers`; keeps one that asks (topics, offsets, groups)."""

    def __init__(self, servers: list[str], options: LogOptions) -> None:
        self.options = options
        self._servers = servers
        self._lock = threading.Lock()
        self._admin: KafkaAdminClient | None = None

    def make_producer(self) -> KafkaProducer:
        """An idempotent producer that waits for all in-sync replicas. Raises LogUnavailable."""
        timeout_ms = int(1000 * self.options.timeout_s)
        producer = self._make(
            lambda: KafkaProducer(
                **self._configuration(),
                acks="all",
                enable_idempotence=True,
                delivery_timeout_ms=timeout_ms,
                max_block_ms=timeout_ms,
                max_request_size=MAX_REQUEST_BYTES,
                batch_size=256 << 10,
                linger_ms=2,
                metrics_enabled=False,
            )
        )
        _calm(producer)
        return producer

    def make_consumer(self, **configuration: Any) -> KafkaConsumer:
        """A consumer that commits nothing by itself. Raises LogUnavailable."""
        given = {"enable_auto_commit": False, "auto_offset_reset": "none", "metrics_enabled": False, **configuration}
        return self._make(lambda: KafkaConsumer(**self._configuration(), **given))

    def ask(self, fn: Callable[[KafkaAdminClient], T]) -> T:
        """What `fn` returns, tried again while the cluster asks for patience. Raises LogUnavailable.

        Errors of the cluster that patience does not mend (BrokerResponseError) are the caller's.
        """
        deadline = time.monotonic() + self.options.timeout_s
        while True:
            try:
                return call_within(max(0.1, deadline - time.monotonic()), partial(fn, self._get_admin()))
            except BrokerResponseError as error:
                if not isinstance(error, RetriableError):
                    raise
                if time.monotonic() + RETRY_S > deadline:
                    raise LogUnavailable(f"Kafka does not answer: {describe(error)}") from error
                if isinstance(error, NotCoordinatorError):
                    self.close()  # it remembers who the coordinator was
                time.sleep(RETRY_S)
            except FAILURES as error:
                self.close()
                raise LogUnavailable(f"Kafka does not answer: {describe(error)}") from error

    def close(self) -> None:
        """Throw the kept client away; the next call makes another."""
        with self._lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            close_later(admin)

    def _get_admin(self) -> KafkaAdminClient:
        with self._lock:
            if self._admin is None:
                self._admin = self._make(lambda: KafkaAdminClient(**self._configuration()))
            return self._admin

    def _make(self, constructor: Callable[[], T]) -> T:
        try:
            return call_within(2 * self._connect_timeout_s, constructor)
        except FAILURES as error:
            raise LogUnavailable(f"Kafka at {', '.join(self._servers)} is out of reach: {describe(error)}") from error

    @property
    def _connect_timeout_s(self) -> float:
        return min(CONNECT_TIMEOUT_S, self.options.timeout_s)

    def _configuration(self) -> dict[str, Any]:
        options = self.options
        values: dict[str, Any] = {
            "bootstrap_servers": self._servers,
            "client_id": "prefloop",
            "bootstrap_timeout_ms": int(1000 * self._connect_timeout_s),
            "request_timeout_ms": int(1000 * min(10.0, options.timeout_s / 2)),
            "reconnect_backoff_max_ms": 1000,
            "security_protocol": options.security.upper(),
        }
        if options.security in ("ssl", "sasl_ssl"):
            values["ssl_cafile"] = options.ca_file or None
            values["ssl_certfile"] = options.cert_file or None
            values["ssl_keyfile"] = options.key_file or None
        if options.security in ("sasl_plaintext", "sasl_ssl"):
            values["sasl_mechanism"] = options.sasl_mechanism
            values["sasl_plain_username"] = options.sasl_username
            values["sasl_plain_password"] = options.sasl_password
        return values


def _calm(producer: KafkaProducer) -> None:
    """Have the producer's thread wait for a broker that is not there, instead of asking without a pause.

    kafka-python 3.0 takes seconds for milliseconds here, and none at all while a connection is being made: with a broker
    that hangs, the thread took half a core and the interpreter's lock from all others.
    """
    client = producer._sender._client
    delay_s = client.connection_delay
    client.connection_delay = lambda node: max(MIN_DELAY_MS, 1000 * delay_s(node))


def describe(error: BaseException) -> str:
    """An error in words, never empty."""
    text, name = str(error), type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}".removesuffix(": ")
