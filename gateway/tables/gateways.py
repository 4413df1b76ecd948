"""What the gateways that share a database report of themselves, and the lease of the one that leads."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    String,
    Table,
    Text,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from feedback.database import insert_or_ignore, metadata
from gateway.tables.serving import get_serving, take_fence

gateways = Table(
    "gateways",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("in_flight", Text, nullable=False),
    Column("wanted", Text, nullable=False),
    Column("seen_at", Float, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("policy", String(200), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("expires_at", Float, nullable=False),
)

# Built once: what runs at every beat costs less to run than to build.
_REPORTS = select(gateways).order_by(gateways.c.id)
_UPDATE_REPORT = update(gateways).where(gateways.c.id == bindparam("gateway"))
_DELETE_SILENT = delete(gateways).where(gateways.c.seen_at < bindparam("before"))
_LEASE = select(leases).where(leases.c.policy == bindparam("policy")).with_for_update()
_RENEW_LEASE = update(leases).where(leases.c.policy == bindparam("of"))


@dataclass(frozen=True)
class Report:
    """What one gateway said of itself. in_flight: requests by checkpoint; expected: what it loads again if it is missing."""

    id: str
    generation: int
    in_flight: Mapping[str, int]
    expected: frozenset[str]
    seen_at: float


def store_report(conn: Connection, report: Report) -> None:
    """Replace the gateway's row."""
    values = {
        "generation": report.generation,
        "in_flight": msgspec.json.encode(report.in_flight).decode(),
        "wanted": msgspec.json.encode(sorted(report.expected)).decode(),
        "seen_at": report.seen_at,
    }
    if conn.execute(_UPDATE_REPORT, {"gateway": report.id, **values}).rowcount == 0:
        conn.execute(insert(gateways).values(id=report.id, **values))


def list_reports(conn: Connection) -> list[Report]:
    """The newest report of every gateway, those of the dead included."""
    return [
        Report(
            id=row.id,
            generation=row.generation,
            in_flight=msgspec.json.decode(row.in_flight, type=dict[str, int]),
            expected=msgspec.json.decode(row.wanted, type=frozenset[str]),
            seen_at=row.seen_at,
        )
        for row in conn.execute(_REPORTS)
    ]


def take_lease(conn: Connection, policy: str, holder: str, now: float, lease_s: float) -> int | None:
    """Lead, or go on leading, until now + lease_s: the fence to write under. None while another gateway leads."""
    row = conn.execute(_LEASE, {"policy": policy}).first()
    if row is None:
        insert_or_ignore(conn, leases, {"policy": policy, "holder": "", "expires_at": 0.0})
        row = conn.execute(_LEASE, {"policy": policy}).one()
    if row.holder != holder and row.expires_at > now:
        return None
    conn.execute(_RENEW_LEASE, {"of": policy, "holder": holder, "expires_at": now + lease_s})
    if row.holder == holder:
        return get_serving(conn, policy).fence
    return take_fence(conn, policy)


def delete_silent(conn: Connection, before: float) -> None:
    """Forget the gateways that have not reported since."""
    conn.execute(_DELETE_SILENT, {"before": before})


def store_departure(conn: Connection, policy: str, gateway: str) -> None:
    """The gateway is gone, and its lease is free."""
    conn.execute(delete(gateways).where(gateways.c.id == gateway))
    mine = (leases.c.policy == policy, leases.c.holder == gateway)
    conn.execute(update(leases).where(*mine).values(holder="", expires_at=0.0))


def clear_reports(conn: Connection) -> None:
    """Forget every gateway and every lease: no other process shares the database."""
    conn.execute(delete(gateways))
    conn.execute(delete(leases))
