"""The log between gateway and trainer: the protocol, and the back end that a URL names."""

from feedback.log.base import Log, NewRecord, Record

__all__ = ["Log", "NewRecord", "Record", "open_log"]


def open_log(url: str) -> Log:
    """Open the log behind `sqlite:PATH`. Raises ValueError for a scheme that no back end serves."""
    if url.partition(":")[0] == "sqlite":
        from feedback.log.sqlite import SqliteLog

        return SqliteLog(url)
    raise ValueError(f"no log back end serves {url!r}")
