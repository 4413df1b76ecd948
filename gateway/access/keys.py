"""API keys `pl_<id>_<secret>`: made, listed, changed, given a new secret, revoked.

Only HMAC-SHA256(pepper, key) is stored. An app's users are hashed under the app, which several keys may share and every secret of
a key keeps: neither a new secret nor a second key makes other people of them.
"""

import hashlib
import hmac
import logging
import secrets as random_secrets
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
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
from gateway.errors import RefusedAction

logger = logging.getLogger("gateway.keys")

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
    Column("name", String(200), nullable=False, server_default=""),  # empty: the app's
    Column("expires_at", Float, nullable=True),
    Column("old_digest", String(64), nullable=True),  # of the secret before, which works until `old_until`
    Column("old_until", Float, nullable=True),
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

KEYS_WITH_LIMITS = keys_table.outerjoin(key_limits_table, keys_table.c.id == key_limits_table.c.key_id)


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
    """A key as operators see it, without its secret. app: whose users it speaks for; times in epoch seconds.

    scope: one or several, separated by blanks. old_secret_until: when the secret before the last rotation ends, if it works still.
    """

    id: str
    name: str
    app: str
    scope: str
    pairs: bool
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    old_secret_until: float | None = None
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
    name: str = "",
    expires_at: float | None = None,
) -> tuple[str, KeyRow]:
    """Make a key; the whole key is returned here and never again. Raises ValueError for an unknown scope."""
    if not scopes or not scopes <= SCOPES:
        raise ValueError(f"scopes must be some of {', '.join(sorted(SCOPES))}")
    key = _make_secret(random_secrets.token_hex(6))
    row = _store(
        conn, key, pepper, app=app, scopes=scopes, pairs=pairs, now=now, name=name or app, expires_at=expires_at
    )
    return key, msgspec.structs.replace(row, limits=_store_limits(conn, row.id, limits or KeyLimits()))


def change_limits(conn: Connection, key_id: str, change: LimitsChange) -> KeyRow | None:
    """Give a key other limits; None if there is no such key. What was used counts against the new ones."""
    row = find_key(conn, key_id)
    if row is None:
        return None
    given = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not msgspec.UNSET}
    limits = msgspec.structs.replace(row.limits or KeyLimits(), **given)
    return msgspec.structs.replace(row, limits=_store_limits(conn, key_id, limits))


def change_expiry(conn: Connection, key_id: str, expires_at: float | None) -> bool:
    """Let a key end at another time, or never; False if there is no such key."""
    changed = update(keys_table).where(keys_table.c.id == key_id).values(expires_at=expires_at)
    return conn.execute(changed).rowcount == 1


def rotate_key(conn: Connection, pepper: bytes, key_id: str, grace_s: float, now: float) -> tuple[str, KeyRow] | None:
    """Give a key another secret, which is returned here and never again; None if there is no such key.

    The secret that it had works for another `grace_s`; one of an earlier rotation ends now. Raises RefusedAction if the key was
    revoked.
    """
    row = find_key(conn, key_id)
    if row is None:
        return None
    if row.revoked_at is not None:
        raise RefusedAction("This key was revoked: make another one.")
    key = _make_secret(key_id)
    until = now + grace_s if grace_s > 0 else None
    changed = update(keys_table).where(keys_table.c.id == key_id)
    conn.execute(changed.values(
        old_digest=None if until is None else keys_table.c.digest, old_until=until, digest=digest_key(key, pepper)
    ))  # fmt: skip
    return key, msgspec.structs.replace(row, old_secret_until=until)


def find_key(conn: Connection, key_id: str) -> KeyRow | None:
    """The key of this id."""
    found = conn.execute(select(KEYS_WITH_LIMITS).where(keys_table.c.id == key_id)).first()
    return None if found is None else _read_row(found)


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
    query = select(KEYS_WITH_LIMITS).order_by(keys_table.c.created_at, keys_table.c.id)
    return [_read_row(row) for row in conn.execute(query)]


def key_id_of(key: str) -> str:
    """The id inside a key, empty if it does not look like one."""
    parts = key.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "pl" and parts[1] and parts[2] else ""


def read_limits(row: Row[Any]) -> KeyLimits | None:
    """The limits of a row of KEYS_WITH_LIMITS; None if it has none."""
    limits = KeyLimits(**{name: getattr(row, name) for name in KeyLimits.__struct_fields__})
    return None if limits == KeyLimits() else limits


def _make_secret(key_id: str) -> str:
    return f"pl_{key_id}_{random_secrets.token_urlsafe(32)}"


def _store(
    conn: Connection, key: str, pepper: bytes, *, app: str, scopes: frozenset[str], pairs: bool, now: float,
    name: str = "", expires_at: float | None = None,
) -> KeyRow:  # fmt: skip
    row = KeyRow(
        id=key_id_of(key), name=name or app, app=app, scope=" ".join(sorted(scopes)), pairs=pairs, created_at=now,
        expires_at=expires_at,
    )  # fmt: skip
    values = {
        "id": row.id,
        "digest": digest_key(key, pepper),
        "app": app,
        "scopes": row.scope,
        "pairs": pairs,
        "created_at": row.created_at,
        "revoked_at": None,
        "name": row.name,
        "expires_at": expires_at,
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


def _read_row(row: Row[Any]) -> KeyRow:
    return KeyRow(
        id=row.id,
        name=row.name or row.app,
        app=row.app,
        scope=row.scopes,
        pairs=row.pairs,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        old_secret_until=row.old_until,
        limits=read_limits(row),
    )
