"""The keys that work now, in memory, against which every request's header is checked.

Refreshed after every change made here and by key_follower.py: a key that was revoked, limited or given another secret through
another gateway is so here within seconds. A key, or the secret before its last rotation, ends by the clock alone.
"""

import hmac
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Engine, select

from gateway.access.keys import KEYS_WITH_LIMITS, Identity, digest_key, key_id_of, keys_table, read_limits
from gateway.errors import unauthorized

_MAX_HEADERS = 10_000  # remembered at a time


class _Key(NamedTuple):
    """A key's secrets by digest, each with when it ends (epoch seconds, or never), and whose it is."""

    digests: tuple[tuple[str, float], ...]
    identity: Identity
    name: str


@dataclass(frozen=True)
class _Snapshot:
    """The keys as they were read at one time, and the headers that were verified against them, each until it ends."""

    keys: dict[str, _Key] = field(default_factory=dict)
    headers: dict[bytes, tuple[Identity, float]] = field(default_factory=dict)


class KeyRing:
    """Compares in constant time. clock: epoch seconds.

    A header is remembered with the keys that it was verified against: what a refresh has taken away stays away.
    """

    def __init__(self, pepper: bytes, clock: Callable[[], float] = time.time) -> None:
        self._pepper, self._clock = pepper, clock
        self._known = _Snapshot()
        self._refreshing = threading.Lock()  # one that read before a key was revoked may not end after one that did not

    def refresh(self, database: Engine) -> None:
        """Read the table again; may run in any thread."""
        with self._refreshing:
            with database.connect() as conn:
                rows = conn.execute(select(KEYS_WITH_LIMITS).where(keys_table.c.revoked_at.is_(None))).all()
            old = self._known.keys
            fresh = {}
            for row in rows:
                identity = Identity(row.id, row.app, frozenset(row.scopes.split()), row.pairs, read_limits(row))
                # The same object while nothing changed: whoever keeps something per key compares by identity.
                known = old[row.id].identity if row.id in old and old[row.id].identity == identity else identity
                ends_at = math.inf if row.expires_at is None else row.expires_at
                digests = [(row.digest, ends_at)]
                if row.old_digest is not None and row.old_until is not None:
                    digests.append((row.old_digest, min(ends_at, row.old_until)))
                fresh[row.id] = _Key(tuple(digests), known, row.name or row.app)
            self._known = _Snapshot(fresh)

    def identify(self, header: bytes) -> Identity | None:
        """Whose `Authorization: Bearer pl_…` it is; None if the key is unknown, wrong or revoked.

        Raises ApiError 401 if it has ended: who asks is told, as only the key's owner can know that secret.
        """
        known = self._known
        found = known.headers.get(header)
        if found is None:
            scheme, _, key = header.partition(b" ")
            found = self._find(known, key.strip().decode("latin-1")) if scheme.lower() == b"bearer" else None
            if found is None:
                return None
            if len(known.headers) >= _MAX_HEADERS:
                known.headers.clear()
            known.headers[header] = found
        identity, ends_at = found
        if ends_at != math.inf and self._clock() >= ends_at:
            raise unauthorized("This API key has expired.", code="expired_api_key")
        return identity

    def is_unheard_of(self, header: bytes) -> bool:
        """Whether an `Authorization` header names a key that was not there when the keys were read."""
        key_id = key_id_of(header.partition(b" ")[2].strip().decode("latin-1"))
        return bool(key_id) and key_id not in self._known.keys

    def by_id(self, key_id: str) -> Identity | None:
        """The identity of a key that still works, for sessions that were signed in with it."""
        known = self._known.keys.get(key_id)
        return None if known is None or self._clock() >= known.digests[0][1] else known.identity

    def find_name(self, key_id: str) -> str | None:
        """The name of a key that was not revoked."""
        known = self._known.keys.get(key_id)
        return None if known is None else known.name

    def check(self, key: str) -> Identity | None:
        """Whose key it is; None if it is unknown, wrong, revoked or expired."""
        found = self._find(self._known, key)
        return None if found is None or self._clock() >= found[1] else found[0]

    def _find(self, snapshot: _Snapshot, key: str) -> tuple[Identity, float] | None:
        known = snapshot.keys.get(key_id_of(key))
        digest = digest_key(key, self._pepper)
        if known is None:
            return None
        return next(
            ((known.identity, ends_at) for each, ends_at in known.digests if hmac.compare_digest(each, digest)), None
        )
