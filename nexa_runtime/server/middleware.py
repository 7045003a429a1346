"""Around every request: its id, its line in the log, and an answer even when the code has a bug.

Pure ASGI; it never reads bodies. ``state["request_id"]`` is set here, ``state["answer_headers"]`` by whoever
knows the tenant; so are ``key_id``, ``model`` (as the client named it) and ``error_code``, for the log.
Whoever counts requests is told when one has been answered.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nexa_runtime.errors import ShuttingDownError
from nexa_runtime.server.errors import error_response, is_anthropic
from nexa_runtime.telemetry import bind_request, get_logger

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET_PATHS = frozenset({"/health", "/readyz", "/metrics"})
_MAX_PATH_CHARS = 200

_log = get_logger("server")


class RequestMiddleware:
    """Gives each response ``x-request-id``: the client's own where that is sane, else ``req_…``; Anthropic's
    clients look for ``request-id``.
    """

    def __init__(self, app: ASGIApp, on_end: Callable[[Scope, int], None]) -> None:
        """``on_end`` gets the status of each request; 0 where nothing was sent."""
        self._app = app
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, key_id=None, model=None, error_code=None)
        status = 0
        start = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_anthropic(scope["path"]):
                    headers["request-id"] = request_id
                if (answer_headers := state.get("answer_headers")) is not None:
                    headers.update(answer_headers())
            await send(message)

        with bind_request(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                _log.exception("request_crashed", path=scope["path"][:_MAX_PATH_CHARS])
                if status:
                    raise
                await error_response(error, scope)(scope, receive, send_with_id)
            except asyncio.CancelledError:  # the server ends, and uvicorn waits no longer
                if status:
                    raise
                await error_response(ShuttingDownError(), scope)(scope, receive, send_with_id)
            finally:
                self._on_end(scope, status)
                log = _log.debug if scope["path"] in _QUIET_PATHS else _log.info
                log(
                    "request",
                    method=scope["method"],
                    path=scope["path"][:_MAX_PATH_CHARS],
                    status=status,
                    key_id=state["key_id"],
                    model=state["model"],
                    code=state["error_code"],
                    ms=round((time.monotonic() - start) * 1e3, 1),
                )
