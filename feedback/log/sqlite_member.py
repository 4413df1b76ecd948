"""Membership in a group over the embedded log: a lease per member, and partitions dealt out over those who hold one.

Promises: members that renew their leases own every partition between them, each one by one member as soon as all have
looked again. Times are of the clock that counts from the machine's start, which all its processes share and nobody sets.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from feedback.database import insert_or_ignore
from feedback.errors import LogUnavailable

LEASE_S = 10.0  # after which the others take over from one that fell silent
RENEW_S = 2.0

metadata = sa.MetaData()

members = sa.Table(
    "log_members",
    metadata,
    sa.Column("group_name", sa.Text, primary_key=True),
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("member", sa.Text, primary_key=True),
    sa.Column("expires_at", sa.Double, nullable=False),  # time.monotonic()
)

Write = Callable[[Callable[[sa.Connection], None]], None]
Read = Callable[[Callable[[sa.Connection], Any]], Any]


class SqliteMembership:
    """One member of `group`. ask_partitions: the topic's. write and read run in the log's transactions."""

    def __init__(
        self,
        write: Write,
        read: Read,
        ask_partitions: Callable[[], list[int]],
        group: str,
        topic: str,
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        self._write, self._read, self._ask_partitions = write, read, ask_partitions
        self._place = {"group_name": group, "topic": topic, "member": uuid.uuid4().hex}
        self._lease_s = lease_s
        self._renew_at = 0.0
        self._lock = threading.Lock()

    def partitions(self) -> list[int]:
        """This member's share; renews its lease."""
        with self._lock:
            now = time.monotonic()
            if now >= self._renew_at:
                self._write(lambda connection: self._renew(connection, now))
                self._renew_at = now + min(RENEW_S, self._lease_s / 3)
            alive: list[str] = self._read(lambda connection: self._list_alive(connection, now))
        if self._place["member"] not in alive:
            self._renew_at = 0.0  # held up for longer than the lease: another call takes part again
            return []
        return deal_partitions(self._ask_partitions(), alive, self._place["member"])

    def leave(self) -> None:
        """Give the lease back."""
        with self._lock:
            self._renew_at = 0.0
            try:
                self._write(lambda connection: self._delete(connection))
            except LogUnavailable:
                return  # the lease ends by itself

    def _renew(self, connection: sa.Connection, now: float) -> None:
        # A lease that ends later than any could was made before the machine was started anew.
        is_over = (members.c.expires_at <= now) | (members.c.expires_at > now + self._lease_s + LEASE_S)
        connection.execute(sa.delete(members).where(is_over))
        row = {**self._place, "expires_at": now + self._lease_s}
        if not insert_or_ignore(connection, members, row):
            connection.execute(sa.update(members).filter_by(**self._place).values(expires_at=row["expires_at"]))

    def _list_alive(self, connection: sa.Connection, now: float) -> list[str]:
        query = sa.select(members.c.member).where(
            members.c.group_name == self._place["group_name"],
            members.c.topic == self._place["topic"],
            members.c.expires_at > now,
        )
        return sorted(connection.execute(query).scalars())

    def _delete(self, connection: sa.Connection) -> None:
        connection.execute(sa.delete(members).filter_by(**self._place))


def deal_partitions(partitions: list[int], alive: list[str], member: str) -> list[int]:
    """The share of `member`: partitions are dealt out in turn over the members in order."""
    place = alive.index(member)
    return [partition for number, partition in enumerate(partitions) if number % len(alive) == place]
