"""Errors that the proxy itself answers, in OpenAI's form."""

from __future__ import annotations

from proxy.codec import dumps

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    409: "ConflictError",
    413: "RequestTooLargeError",
    429: "TooManyRequestsError",
    500: "InternalServerError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
    504: "GatewayTimeoutError",
}


class ProxyError(Exception):
    """An answer of the proxy's own: what, where, and what to do, in `message`.

    `retry_after`: seconds after which asking again makes sense; None: it does not.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    @property
    def body(self) -> bytes:
        return error_body(self.status, self.message)


def error_body(status: int, message: str) -> bytes:
    """The JSON of an error, as OpenAI's clients read it."""
    kind = _TYPES.get(status, "InternalServerError")
    return dumps({"error": {"message": message, "type": kind, "param": None, "code": status}})
