"""Who may ask for what: API keys in the Authorization header, the console's session cookie on operator routes.

Deny by default. A changing request that comes with the cookie must carry the session's CSRF value as well.
"""

from collections.abc import Mapping

from starlette.requests import Request

from gateway.access.keys import Identity, KeyRing
from gateway.access.session import COOKIE_NAME, CSRF_HEADER, is_csrf_valid, read_session
from gateway.errors import ApiError, forbidden, unauthorized
from gateway.serving.context import Context

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def identify_key(headers: Mapping[str, str], keys: KeyRing) -> Identity | None:
    """The identity behind `Authorization: Bearer pl_…`; None without it. Raises ApiError 401 for a wrong key."""
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, key = value.partition(" ")
    identity = keys.check(key.strip()) if scheme.lower() == "bearer" else None
    if identity is None:
        raise unauthorized()
    return identity


def authenticate_header(value: bytes | None, keys: KeyRing, *scopes: str) -> Identity:
    """The identity behind an Authorization header as it came. Raises ApiError 401 or 403."""
    identity = keys.recall(value)
    if identity is None:
        headers = {} if value is None else {"authorization": value.decode("latin-1")}
        identity = authenticate(headers, keys, *scopes)
        keys.remember(value, identity)
    return _demand(identity, scopes)


def authenticate(headers: Mapping[str, str], keys: KeyRing, *scopes: str) -> Identity:
    """The identity, which must hold one of `scopes`. Raises ApiError 401 or 403."""
    identity = identify_key(headers, keys)
    if identity is None:
        raise unauthorized()
    return _demand(identity, scopes)


def require_scope(request: Request, *scopes: str) -> Identity:
    """The identity behind an operator's request, by key or by session. Raises ApiError 401 or 403."""
    context: Context = request.app.state.context
    identity = identify_key(request.headers, context.keys)
    if identity is None:
        identity = _identify_session(request, context)
    return _demand(identity, scopes)


def _identify_session(request: Request, context: Context) -> Identity:
    session = read_session(request.cookies.get(COOKIE_NAME), context.secrets)
    identity = None if session is None else context.keys.by_id(session.key_id)
    if session is None or identity is None:
        raise unauthorized()
    if request.method not in _READING and not is_csrf_valid(session, request.headers.get(CSRF_HEADER)):
        raise ApiError(403, "The CSRF value is missing or wrong.", code="csrf")
    return identity


def _demand(identity: Identity, scopes: tuple[str, ...]) -> Identity:
    for scope in scopes:
        if identity.may(scope):
            return identity
    raise forbidden(f"This key lacks the scope {' or '.join(scopes)}.")
