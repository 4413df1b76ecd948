"""API keys `pl_<id>_<secret>`: made, listed, revoked, and checked from memory.

Only HMAC-SHA256(pepper, key) is stored. The ring in memory is refreshed after every change made here and by the app's
loop, so that a key revoked or limited through another gateway is so here within seconds.
"""

import hashlib
import hmac
import logging
import secrets as random_secrets
import threading
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Row,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)

from feedback.database import insert_or_ignore, metadata
from gateway.access.limits.allowance import Count, KeyLimits, Money
from gateway.access.secrets import Secrets

logger = logging.getLogger("gateway.keys")

_MAX_HEADERS = 10_000  # remembered at a time
HOW_TO_REPLACE = (
    "To replace it, remove the file `secrets/admin_key` in the state directory and start the gateway again, which makes a "
    "new one (several gateways need the same file); then revoke this key with the new one."
)
PLAYGROUND_APP = "playground"  # what people say there is no evidence: no key may speak in its name
SCOPES = frozenset({"app", "chooser", "operator", "admin"})

keys_table = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("app", String(200), nullable=False),
    Column("scopes", String(100), nullable=False),
    Column("pairs", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float, nullable=True),
)

# A table of its own: the tables of an older database are not altered.
key_limits_table = Table(
    "key_limits",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("requests_per_minute", BigInteger, nullable=True),
    Column("requests_per_day", BigInteger, nullable=True),
    Column("tokens_per_minute", BigInteger, nullable=True),
    Column("tokens_per_day", BigInteger, nullable=True),
    Column("budget_per_minute", Float, nullable=True),
    Column("budget_per_day", Float, nullable=True),
)

_keys_with_limits = keys_table.outerjoin(key_limits_table, keys_table.c.id == key_limits_table.c.key_id)


@dataclass(frozen=True)
class Identity:
    """Who is asking: `pairs` says that this key's requests may be answered twice; `limits` is None without any."""

    key_id: str
    app: str
    scopes: frozenset[str]
    pairs: bool = False
    limits: KeyLimits | None = None

    def may(self, scope: str) -> bool:
        """True if the scope is held; admin holds every scope."""
        return scope in self.scopes or "admin" in self.scopes


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A key as operators see it, without its secret."""

    id: str
    name: str
    scope: str  # one or several, separated by spaces
    pairs: bool
    created_at: float
    revoked_at: float | None = None
    limits: KeyLimits | None = None


class LimitsChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """New limits of a key: None lifts one, what is not given stays."""

    requests_per_minute: Count | msgspec.UnsetType | None = msgspec.UNSET
    requests_per_day: Count | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_minute: Count | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_day: Count | msgspec.UnsetType | None = msgspec.UNSET
    budget_per_minute: Money | msgspec.UnsetType | None = msgspec.UNSET
    budget_per_day: Money | msgspec.UnsetType | None = msgspec.UNSET


def digest_key(key: str, pepper: bytes) -> str:
    """What is stored of a key."""
    return hmac.new(pepper, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def create_key(
    conn: Connection,
    pepper: bytes,
    *,
    app: str,
    scopes: frozenset[str],
    pairs: bool,
    now: float,
    limits: KeyLimits | None = None,
) -> tuple[str, KeyRow]:
    """Make a key; the whole key is returned here and never again. Raises ValueError for an unknown scope."""
    if not scopes or not scopes <= SCOPES:
        raise ValueError(f"scopes must be some of {', '.join(sorted(SCOPES))}")
    key = f"pl_{random_secrets.token_hex(6)}_{random_secrets.token_urlsafe(32)}"
    row = _store(conn, key, pepper, app=app, scopes=scopes, pairs=pairs, now=now)
    return key, msgspec.structs.replace(row, limits=_store_limits(conn, row.id, limits or KeyLimits()))


def change_limits(conn: Connection, key_id: str, change: LimitsChange) -> KeyRow | None:
    """Give a key other limits; None if there is no such key. What was used counts against the new ones."""
    found = conn.execute(select(_keys_with_limits).where(keys_table.c.id == key_id)).first()
    if found is None:
        return None
    given = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not msgspec.UNSET}
    row = _read_row(found)
    limits = msgspec.structs.replace(row.limits or KeyLimits(), **given)
    return msgspec.structs.replace(row, limits=_store_limits(conn, key_id, limits))


def ensure_admin_key(conn: Connection, secrets: Secrets, now: float) -> None:
    """Store the admin key of the secrets directory. One that was revoked stays so, which is logged."""
    key_id = key_id_of(secrets.admin_key)
    digest = digest_key(secrets.admin_key, secrets.pepper)
    query = select(keys_table.c.digest, keys_table.c.revoked_at).where(keys_table.c.id == key_id)
    row = conn.execute(query).first()
    if row is None:
        _store(conn, secrets.admin_key, secrets.pepper, app="admin", scopes=frozenset({"admin"}), pairs=True, now=now)
    elif row.digest != digest:  # another secret under the same id
        conn.execute(update(keys_table).where(keys_table.c.id == key_id).values(digest=digest, revoked_at=None))
    elif row.revoked_at is not None:
        logger.error("the admin key was revoked and stays so. %s", HOW_TO_REPLACE)


def revoke_key(conn: Connection, key_id: str, now: float) -> bool:
    """Revoke a key; False if there is none, True also if it was revoked before."""
    found = conn.execute(select(keys_table.c.revoked_at).where(keys_table.c.id == key_id)).first()
    if found is None:
        return False
    if found.revoked_at is None:
        conn.execute(update(keys_table).where(keys_table.c.id == key_id).values(revoked_at=now))
    return True


def list_keys(conn: Connection) -> list[KeyRow]:
    """All keys, oldest first."""
    query = select(_keys_with_limits).order_by(keys_table.c.created_at, keys_table.c.id)
    return [_read_row(row) for row in conn.execute(query)]


def key_id_of(key: str) -> str:
    """The id inside a key, empty if it does not look like one."""
    parts = key.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "pl" and parts[1] and parts[2] else ""


@dataclass(frozen=True)
class _Snapshot:
    """The keys as they were read at one time, and the headers that were verified against them."""

    keys: dict[str, tuple[str, Identity]] = field(default_factory=dict)
    headers: dict[bytes, Identity] = field(default_factory=dict)


class KeyRing:
    """The keys that work now, in memory; compares in constant time.

    A header is remembered with the keys that it was verified against: what a refresh has taken away stays away.
    """

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self._known = _Snapshot()
        self._refreshing = threading.Lock()  # one that read before a key was revoked may not end after one that did not

    def refresh(self, database: Engine) -> None:
        """Read the table again; may run in any thread."""
        with self._refreshing:
            with database.connect() as conn:
                rows = conn.execute(select(_keys_with_limits).where(keys_table.c.revoked_at.is_(None))).all()
            old = self._known.keys
            fresh = {}
            for row in rows:
                identity = Identity(row.id, row.app, frozenset(row.scopes.split()), row.pairs, _read_limits(row))
                # The same object while nothing changed: whoever keeps something per key compares by identity.
                known = old[row.id][1] if row.id in old and old[row.id][1] == identity else identity
                fresh[row.id] = (row.digest, known)
            self._known = _Snapshot(fresh)

    def identify(self, header: bytes) -> Identity | None:
        """Whose `Authorization: Bearer pl_…` it is; None if the key is unknown, wrong or revoked."""
        known = self._known
        identity = known.headers.get(header)
        if identity is None:
            scheme, _, key = header.partition(b" ")
            identity = self._check(known, key.strip().decode("latin-1")) if scheme.lower() == b"bearer" else None
            if identity is not None:
                if len(known.headers) >= _MAX_HEADERS:
                    known.headers.clear()
                known.headers[header] = identity
        return identity

    def by_id(self, key_id: str) -> Identity | None:
        """The identity of a key that still works, for sessions that were signed in with it."""
        known = self._known.keys.get(key_id)
        return None if known is None else known[1]

    def check(self, key: str) -> Identity | None:
        """Whose key it is; None if it is unknown, wrong or revoked."""
        return self._check(self._known, key)

    def _check(self, snapshot: _Snapshot, key: str) -> Identity | None:
        known = snapshot.keys.get(key_id_of(key))
        digest = digest_key(key, self._pepper)
        return known[1] if known is not None and hmac.compare_digest(known[0], digest) else None


def _store(
    conn: Connection, key: str, pepper: bytes, *, app: str, scopes: frozenset[str], pairs: bool, now: float
) -> KeyRow:
    row = KeyRow(id=key_id_of(key), name=app, scope=" ".join(sorted(scopes)), pairs=pairs, created_at=now)
    values = {
        "id": row.id,
        "digest": digest_key(key, pepper),
        "app": app,
        "scopes": row.scope,
        "pairs": pairs,
        "created_at": row.created_at,
        "revoked_at": None,
    }
    insert_or_ignore(conn, keys_table, values)  # gateways that start together all store the admin key
    return row


def _store_limits(conn: Connection, key_id: str, limits: KeyLimits) -> KeyLimits | None:
    """Replace a key's limits; None if none is left."""
    conn.execute(delete(key_limits_table).where(key_limits_table.c.key_id == key_id))
    if limits == KeyLimits():
        return None
    conn.execute(insert(key_limits_table).values(key_id=key_id, **msgspec.structs.asdict(limits)))
    return limits


def _read_limits(row: Row[Any]) -> KeyLimits | None:
    limits = KeyLimits(**{name: getattr(row, name) for name in KeyLimits.__struct_fields__})
    return None if limits == KeyLimits() else limits


def _read_row(row: Row[Any]) -> KeyRow:
    return KeyRow(
        id=row.id,
        name=row.app,
        scope=row.scopes,
        pairs=row.pairs,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        limits=_read_limits(row),
    )
