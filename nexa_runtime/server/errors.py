"""Errors on the wire: each exception class has one status, and the path chooses the shape of the body.

Owns the map from classes to HTTP statuses, and the two shapes: Anthropic's under ``/v1/messages``, OpenAI's
everywhere else. It never decides what is an error. ``state["error_code"]`` is set here, for who counts them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from nexa_runtime import errors

_STATUS: Mapping[type[errors.NexaError], int] = {
    errors.RequestError: 400,
    errors.UsageError: 400,
    errors.AuthenticationError: 401,
    errors.AccessError: 403,
    errors.HubAccessError: 403,
    errors.ModelNotFoundError: 404,
    errors.ResponseNotFoundError: 404,
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

_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_ANTHROPIC_DETAILS = {"thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}}
"""By refused field: what tells Anthropic's client how to go on. Its tool runner asks the server to keep the
conversation, and sends all of it itself when it reads this.
"""

_INTERNAL_MESSAGE = "The server had an internal error; its log has the details under this request's id."


@dataclass(frozen=True, slots=True)
class _Fault:
    """An error as far as a client may know it."""

    message: str
    status: int
    code: str
    param: str | None = None


def is_anthropic(path: str) -> bool:
    """Whether what is under this path speaks as Anthropic's API does."""
    return path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/")


def anthropic_type(status: int) -> str:
    """Anthropic's ``type`` of an error with this status."""
    other = "invalid_request_error" if status < 500 else "api_error"
    return _ANTHROPIC_TYPES.get(status, other)


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
    return _openai_body(_fault(error))


def anthropic_error_body(error: Exception, request_id: str) -> dict[str, object]:
    """``{"type": "error", "error": {"type", "message"}, "request_id"}``; as ``error_body``."""
    return _anthropic_body(_fault(error), request_id)


def error_response(error: Exception, scope: Scope) -> Response:
    """The whole response of an error."""
    return _response(_fault(error), scope, _retry_headers(error))


async def on_nexa_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of ``NexaError``."""
    return error_response(error, request.scope)


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
    return _response(_Fault(message, status, code), request.scope, error.headers or {})


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


def _fault(error: Exception) -> _Fault:
    if not isinstance(error, errors.NexaError):
        return _Fault(_INTERNAL_MESSAGE, 500, errors.NexaError.code)
    param = error.param if isinstance(error, errors.RequestError) else None
    return _Fault(str(error), status_of(error), error.code, param)


def _response(fault: _Fault, scope: Scope, headers: Mapping[str, str]) -> Response:
    scope["state"]["error_code"] = fault.code
    if is_anthropic(scope["path"]):
        body = _anthropic_body(fault, scope["state"]["request_id"])
    else:
        body = _openai_body(fault)
    return json_response(body, status=fault.status, headers=headers)


def _openai_body(fault: _Fault) -> dict[str, object]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(fault.status, "invalid_request_error") if fault.status < 500 else "server_error"
    return {"error": {"message": fault.message, "type": kind, "param": fault.param, "code": fault.code}}


def _anthropic_body(fault: _Fault, request_id: str) -> dict[str, object]:
    """There is no place for the field at fault but the message."""
    param, message = fault.param, fault.message
    if param is not None and param not in message:
        message = f"{param}: {message}"
    error: dict[str, object] = {"type": anthropic_type(fault.status), "message": message}
    if param in _ANTHROPIC_DETAILS:
        error["details"] = _ANTHROPIC_DETAILS[param]
    return {"type": "error", "error": error, "request_id": request_id}
