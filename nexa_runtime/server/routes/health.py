"""``GET /health`` and ``GET /readyz``."""

import asyncio
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
    reason = dispatcher.unready_reason or (None if has_limits else "The limits' source has not answered.")
    model = dispatcher.pool.default
    body: dict[str, object] = {
        "status": "ready" if is_ready else "not ready",
        "reason": reason,
        "model": dispatcher.pool.library.default_name,
        "open_requests": dispatcher.num_open,
        "tasks": len(asyncio.all_tasks()),
    }
    if model is not None:
        body |= {"slots": model.slots, "kv_cells": model.num_cells, "engine": asdict(model.engine.stats)}
    return json_response(body, status=200 if is_ready else 503)
