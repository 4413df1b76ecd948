"""Who may ask for what: API keys in the Authorization header, the console's session cookie on operator routes.

Deny by default. A changing request that comes with the cookie must carry the session's CSRF value as well.
"""

from starlette.requests import Request

from gateway.access.key_ring import KeyRing
from gateway.access.keys import Identity
from gateway.access.secrets import Secrets
from gateway.access.session import COOKIE_NAME, CSRF_HEADER, is_csrf_valid, read_session
from gateway.errors import ApiError, forbidden, unauthorized

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def authenticate_header(value: bytes | None, keys: KeyRing, *scopes: str) -> Identity:
    """The identity behind an `Authorization` header, which must hold one of `scopes`. Raises ApiError 401 or 403."""
    identity = None if value is None else keys.identify(value)
    if identity is None:
        raise unauthorized()
    return require_scope(identity, *scopes)


def authenticate_request(request: Request, keys: KeyRing, *scopes: str) -> Identity:
    """`authenticate_header` of a request as Starlette has it."""
    return authenticate_header(_read_header(request), keys, *scopes)


def authenticate_operator(request: Request, keys: KeyRing, secrets: Secrets, *scopes: str) -> Identity:
    """The identity behind an operator's request, by key or else by session. Raises ApiError 401 or 403."""
    if (value := _read_header(request)) is not None:
        return authenticate_header(value, keys, *scopes)
    session = read_session(request.cookies.get(COOKIE_NAME), secrets.token_key)
    identity = None if session is None else keys.by_id(session.key_id)
    if session is None or identity is None:
        raise unauthorized()
    if request.method not in _READING and not is_csrf_valid(session, request.headers.get(CSRF_HEADER)):
        raise ApiError(403, "The CSRF value is missing or wrong.", code="csrf")
    return require_scope(identity, *scopes)


def require_scope(identity: Identity, *scopes: str) -> Identity:
    """The identity, if it holds one of `scopes`. Raises ApiError 403."""
    for scope in scopes:
        if identity.may(scope):
            return identity
    raise forbidden(f"This key lacks the scope {' or '.join(scopes)}.")


def _read_header(request: Request) -> bytes | None:
    value = request.headers.get("authorization")
    return None if value is None else value.encode("latin-1")
