"""The log between gateway and trainer: the protocol, and the back end that a URL names."""

from __future__ import annotations

from feedback.log.base import Log, Membership, NewRecord, Record
from feedback.log.options import LogOptions

__all__ = ["Log", "LogOptions", "Membership", "NewRecord", "Record", "open_log"]


def open_log(url: str, options: LogOptions | None = None) -> Log:
    """Open the log behind `sqlite:PATH` or `kafka://HOST:PORT[,HOST:PORT]`. options: for Kafka.

    Raises ValueError for a scheme that no back end serves.
    """
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        from feedback.log.sqlite import SqliteLog

        return SqliteLog(url)
    if scheme == "kafka":
        from feedback.log.kafka import KafkaLog

        return KafkaLog(url, options)
    raise ValueError(f"no log back end serves {url!r}")
