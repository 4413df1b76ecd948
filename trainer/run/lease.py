"""One trainer at a time works on a database: it holds the lease, the others stand by.

A row with holder, fence and expiry, by the database's own clock. Every write of the holder's goes through `guard`, which locks
the row and compares the fence in the same transaction: a trainer that was paused, and wakes when another works, writes nothing.
The lease of a trainer that died runs out; one that stops gives it back. A database that is away for a while costs no lease that
nobody took meanwhile. On SQLite there is no row: the lock on the state directory (state_lock.py) lets one process work.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from feedback.database import insert_or_ignore, write_transaction
from feedback.inbox import metadata
from feedback.outages import describe_error

log = logging.getLogger("trainer.run.lease")

leases = sa.Table(
    "trainer_lease",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),  # rises by one whenever the lease changes hands
    sa.Column("expires_at", sa.Float, nullable=False),  # epoch seconds of the database's clock
    sa.Column("taken_at", sa.Float, nullable=False),
    sa.Column("view", sa.Text, nullable=False),  # JSON: what the holder says that it does
)
_NAME = "trainer"
_ROW = sa.select(leases).where(leases.c.name == _NAME)
_FENCE = sa.select(leases.c.holder, leases.c.fence).where(leases.c.name == _NAME).with_for_update(read=True)
_NOW = sa.select(sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Float))
RENEWALS = 3  # in the time that a lease lasts
TRY_EVERY_S = 1.0
STOP_WAIT_S = 1.0


class LeaseLost(Exception):
    """Another trainer works on the database: nothing may be written any more."""


@dataclass(frozen=True)
class Holding:
    """Who holds the lease. seconds_left: below 0 once it has run out. view: what the holder does, as JSON."""

    holder: str
    fence: int
    seconds_left: float
    taken_at: float
    view: str = ""


def name_place(state_dir: Path) -> str:
    """A name for this machine's state directory."""
    return f"{socket.gethostname()}-{hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:6]}"


def name_holder(place: str) -> str:
    """A name for this process that no other has."""
    return f"{place}-{os.getpid()}-{secrets.token_hex(3)}"


def take_lease(connection: sa.Connection, holder: str, lease_s: float, place: str = "") -> int | None:
    """Hold the lease until lease_s from now: the fence to write under. None while another trainer holds it.

    place: where this one has the lock on the state directory, so that a holder of that place is dead.
    """

    def is_held(row: sa.Row[Any], now: float) -> bool:
        is_dead = bool(place) and row.holder.startswith(f"{place}-")
        return bool(row.holder != holder and row.expires_at > now and not is_dead)

    seen = connection.execute(_ROW).first()  # without its lock: who stands by must not make the holder wait
    if seen is not None and is_held(seen, connection.execute(_NOW).scalar_one()):
        return None
    if seen is None:
        empty = {"name": _NAME, "holder": "", "fence": 0, "expires_at": 0.0, "taken_at": 0.0, "view": ""}
        insert_or_ignore(connection, leases, empty)
    row = connection.execute(_ROW.with_for_update()).one()
    now = connection.execute(_NOW).scalar_one()  # after the row is locked, however long that took
    if is_held(row, now):
        return None
    fence = int(row.fence) if row.holder == holder else int(row.fence) + 1
    taken_at = row.taken_at if row.holder == holder else now
    values = {"holder": holder, "fence": fence, "expires_at": now + lease_s, "taken_at": taken_at}
    connection.execute(sa.update(leases).where(leases.c.name == _NAME).values(values))
    return fence


def renew_lease(connection: sa.Connection, holder: str, fence: int, lease_s: float, view: str) -> None:
    """Hold the lease for longer, though it ran out, if nobody took it. Raises LeaseLost."""
    row = connection.execute(_ROW.with_for_update()).first()
    if row is None or (row.holder, row.fence) != (holder, fence):
        raise LeaseLost(f"{row.holder if row else 'nobody'} holds the lease now")
    now = connection.execute(_NOW).scalar_one()
    values = {"expires_at": now + lease_s, "view": view}
    connection.execute(sa.update(leases).where(leases.c.name == _NAME).values(values))


def check_fence(connection: sa.Connection, holder: str, fence: int) -> None:
    """Keep the lease as it is until the transaction ends. Raises LeaseLost if another has it."""
    row = connection.execute(_FENCE).first()
    if row is None or (row.holder, row.fence) != (holder, fence):
        raise LeaseLost(f"{row.holder if row else 'nobody'} holds the lease now")


def release_lease(connection: sa.Connection, holder: str) -> None:
    """The next trainer need not wait; nothing if another holds it."""
    mine = (leases.c.name == _NAME, leases.c.holder == holder)
    connection.execute(sa.update(leases).where(*mine).values(holder="", expires_at=0.0))


def read_holding(connection: sa.Connection) -> Holding | None:
    """Who holds the lease, or held it last; None before the first, and once it was given back."""
    row = connection.execute(_ROW).first()
    if row is None or not row.holder:
        return None
    now = connection.execute(_NOW).scalar_one()
    return Holding(row.holder, row.fence, row.expires_at - now, row.taken_at, row.view)


class Lease(threading.Thread):
    """This process's part in who works. `held` is set once it does, and stays set until the process ends.

    place: of the state directory that may_try locks (name_place). may_try: False while something else keeps this process from
    working. view: what it does, as JSON, for those that stand by.
    on_standby is called with who holds it. on_lost must end the process: what it knows is out of date.
    """

    def __init__(
        self,
        database: sa.Engine,
        lease_s: float,
        *,
        may_try: Callable[[], bool],
        view: Callable[[], str],
        on_standby: Callable[[Holding | None], None],
        on_lost: Callable[[str], None],
        holder: str = "",
        place: str = "",
    ) -> None:
        super().__init__(name="lease", daemon=True)
        self.held, self.fence = threading.Event(), 0
        self.holder, self._place = holder or name_holder(place), place
        self._database, self._lease_s = database, lease_s
        self._may_try, self._view, self._on_standby, self._on_lost = may_try, view, on_standby, on_lost
        self._has_rows = database.dialect.name != "sqlite"
        self._stopping = threading.Event()

    def try_take(self) -> bool:
        """Hold the lease from now on, if that is possible. Raises what the database raises."""
        if self.held.is_set():
            return True
        if not self._may_try():
            return False
        if self._has_rows:
            with write_transaction(self._database) as connection:
                fence = take_lease(connection, self.holder, self._lease_s, self._place)
            if fence is None:
                return False
            self.fence = fence
            log.info("%s holds the lease, the %d. to do so", self.holder, fence)
        self.held.set()
        return True

    def read_holding(self) -> Holding | None:
        """Who holds the lease; None for nobody, and on SQLite."""
        if not self._has_rows:
            return None
        with self._database.connect() as connection:
            return read_holding(connection)

    def guard(self, connection: sa.Connection) -> None:
        """Call first in every transaction that writes. Raises LeaseLost, unless on_lost ends the process."""
        if not self._has_rows:
            return
        try:
            check_fence(connection, self.holder, self.fence)
        except LeaseLost as error:
            self._on_lost(str(error))
            raise

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self.held.is_set():
                    self._stand_by()
                elif self._has_rows:
                    self._renew()
                else:
                    return
            except Exception as error:  # the loop's edge: a database that is away is asked again
                log.warning("the lease is not certain: %s", describe_error(error))
            self._stopping.wait(self._lease_s / RENEWALS if self.held.is_set() else min(TRY_EVERY_S, self._lease_s))

    def _stand_by(self) -> None:
        if not self.try_take():
            self._on_standby(self.read_holding())

    def _renew(self) -> None:
        try:
            with write_transaction(self._database) as connection:
                renew_lease(connection, self.holder, self.fence, self._lease_s, self._view())
        except LeaseLost as error:
            if not self._stopping.is_set():  # else it was given back meanwhile
                self._on_lost(str(error))

    def stop(self) -> None:
        """End the thread, and give the lease back if it is held. Nothing may be written after it."""
        self._stopping.set()
        if self.is_alive() and self is not threading.current_thread():
            self.join(STOP_WAIT_S)
        if not self._has_rows or not self.held.is_set():
            return
        try:
            with write_transaction(self._database) as connection:
                release_lease(connection, self.holder)
        except Exception as error:  # it runs out by itself
            log.info("the lease is not given back: %s", describe_error(error))
