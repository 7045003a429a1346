"""``GET /health`` and ``GET /readyz``."""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.errors import json_response
from nexa_runtime.server.services import services


async def health(_: Request) -> Response:
    """The process answers. Never touches the engine."""
    return json_response({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Whether requests are taken, and what the engine holds right now."""
    dispatcher = services(request).dispatcher
    has_limits = services(request).tenancy.directory.has_answered
    is_ready = dispatcher.is_ready and has_limits
    model = dispatcher.pool.default
    body = {
        "status": "ready" if is_ready else "not ready",
        "limits": "known" if has_limits else "their source has not answered yet",
        "model": model.id,
        "slots": model.slots,
        "kv_cells": model.num_cells,
        "open_requests": dispatcher.num_open,
        "engine": asdict(model.engine.stats),
    }
    return json_response(body, status=200 if is_ready else 503)
