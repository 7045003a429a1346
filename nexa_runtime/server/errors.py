"""Errors on the wire: each exception class has one status, and one body shape serves all.

Owns the map from classes to HTTP statuses and OpenAI's error body. It never decides what is an error.
"""

import math
from collections.abc import Mapping

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime import errors

_STATUS: Mapping[type[errors.NexaError], int] = {
    errors.RequestError: 400,
    errors.UsageError: 400,
    errors.AuthenticationError: 401,
    errors.AccessError: 403,
    errors.HubAccessError: 403,
    errors.ModelNotFoundError: 404,
    errors.BodyTimeoutError: 408,
    errors.NotFoundError: 404,
    errors.ModelInUseError: 409,
    errors.BodyTooLargeError: 413,
    errors.ClientDisconnectedError: 499,
    errors.TenantLimitError: 429,
    errors.NexaError: 500,
    errors.HubUnavailableError: 502,
    errors.IntegrityError: 502,
    errors.TenantConfigError: 503,
    errors.BoxBusyError: 503,
    errors.RequestTimeoutError: 504,
    errors.NoSpaceError: 507,
}

_MAX_RETRY_AFTER_S = 60
"""OpenAI's clients do not retry at all when they are told to wait for longer than two minutes."""

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}

_INTERNAL_MESSAGE = "The server had an internal error; its log has the details under this request's id."


def status_of(error: Exception) -> int:
    """The status of an error; 500 for what is not ours."""
    return status_of_class(type(error))


def status_of_class(error: type[Exception]) -> int:
    """The status of the nearest class in the tree."""
    for cls in error.__mro__:
        if (status := _STATUS.get(cls)) is not None:
            return status
    return 500


def error_body(error: Exception) -> dict[str, object]:
    """``{"error": {"message", "type", "param", "code"}}``; says nothing about errors that are not ours."""
    if not isinstance(error, errors.NexaError):
        return _body(_INTERNAL_MESSAGE, 500, None, errors.NexaError.code)
    param = error.param if isinstance(error, errors.RequestError) else None
    return _body(str(error), status_of(error), param, error.code)


def error_response(error: Exception) -> Response:
    """The whole response of an error."""
    return json_response(error_body(error), status=status_of(error), headers=_retry_headers(error))


async def on_nexa_error(_: Request, error: Exception) -> Response:
    """Starlette's handler of ``NexaError``."""
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of its own errors: no such path, wrong method."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 404:
        message = f"There is nothing at {request.method} {request.url.path[:200]}."
    elif status == 405:
        message = f"{request.url.path[:200]} does not take {request.method}."
    else:
        message = str(error.detail)
    code = _HTTP_CODES.get(status, errors.RequestError.code)
    return json_response(_body(message, status, None, code), status=status, headers=error.headers or {})


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """``content`` as a JSON response."""
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type="application/json")


def _retry_headers(error: Exception) -> dict[str, str]:
    if not isinstance(error, (errors.TenantLimitError, errors.BoxBusyError, errors.TenantConfigError)):
        return {}
    seconds = min(error.retry_after_s, _MAX_RETRY_AFTER_S)
    whole, milliseconds = max(math.ceil(seconds), 1), max(math.ceil(seconds * 1e3), 1)
    return {"retry-after": str(whole), "retry-after-ms": str(milliseconds)}


def _body(message: str, status: int, param: str | None, code: str) -> dict[str, object]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error") if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
