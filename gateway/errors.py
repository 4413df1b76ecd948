"""The gateway's error tree, and the one shape in which a client sees an error.

Every refusal is an ApiError with OpenAI's body {"error": {message, type, param, code}}. Says nothing about how an
engine failed: a client learns the status and a sentence, the log has the rest.
"""

from collections.abc import Mapping

import msgspec


class GatewayError(Exception):
    """The root of what the gateway raises."""


class SwapError(GatewayError):
    """A checkpoint could not be loaded, or did not prove itself; the message is the reason shown to operators.

    `is_transient`: an engine did not answer, so the same load may succeed later.
    """

    def __init__(self, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.is_transient = is_transient


class CheckpointGone(GatewayError):
    """The checkpoint was unloaded between choosing it and asking for it: choose again."""


class RefusedAction(GatewayError):
    """An operator's action does not fit things as they stand; the message says why."""


class SecretsError(GatewayError):
    """The secrets are missing, unreadable or not fit for how the gateway is asked to listen."""


class MissingExtra(GatewayError):
    """A setting asks for a package that is not installed; the message says which to install."""


class EngineUnavailable(GatewayError):
    """No engine answered before the first byte, within the time that requests may wait."""


class FilesMissing(EngineUnavailable):
    """The engine is well, but its sidecar has not fetched the checkpoint's files yet."""


class EngineLost(EngineUnavailable):
    """The engine went away, or hung, after it had the request and before the first byte: the request may be why."""


class StaleConnection(EngineUnavailable):
    """A connection that was used before had been closed by the engine: another one may do."""


class EngineInterrupted(GatewayError):
    """The engine went away, or stopped sending, after the first byte of its answer."""


class UnreadableAnswer(GatewayError):
    """An engine's answer does not have the shape of one; the message says what is wrong, for the log."""


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    410: "gone_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(GatewayError):
    """A request that is refused with `status`; `code` is a stable word for programs, `param` the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON body."""
        return error_body(self.status, self.message, code=self.code, param=self.param)


class ErrorDetail(msgspec.Struct, frozen=True):
    """`code` is a word for programs (an engine's is a number), `param` the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | int | None


class ErrorBody(msgspec.Struct, frozen=True):
    """Every refusal: OpenAI's shape."""

    error: ErrorDetail


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object as JSON; 5xx are `server_error`."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode(ErrorBody(ErrorDetail(message, kind, param, code)))


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400."""
    return ApiError(400, message, param=param, code=code)


def unauthorized(message: str = "Missing or wrong API key.", *, code: str = "invalid_api_key") -> ApiError:
    """401."""
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})


def forbidden(message: str) -> ApiError:
    """403."""
    return ApiError(403, message, code="insufficient_scope")


def not_found(message: str, *, code: str | None = None, param: str | None = None) -> ApiError:
    """404."""
    return ApiError(404, message, code=code, param=param)


def unavailable(message: str, *, retry_after_s: int = 1) -> ApiError:
    """503 with Retry-After."""
    return ApiError(503, message, code="unavailable", headers={"retry-after": str(retry_after_s)})
