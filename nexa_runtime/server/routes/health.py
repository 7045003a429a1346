"""``GET /health`` and ``GET /readyz``."""

import asyncio
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.errors import json_response
from nexa_runtime.server.services import services


async def health(_: Request) -> Response:
    """The event loop answers. Never touches the engine, a source of limits, or the disk."""
    return json_response({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Whether requests are taken, else why not, and what the engine holds right now."""
    reasons = services(request).readiness.reasons()
    dispatcher = services(request).dispatcher
    model = dispatcher.pool.default
    body: dict[str, object] = {
        "status": "not ready" if reasons else "ready",
        "reason": reasons[0].message if reasons else None,
        "reasons": [asdict(reason) for reason in reasons],
        "model": dispatcher.pool.library.default_name,
        "open_requests": dispatcher.num_open,
        "tasks": len(asyncio.all_tasks()),
    }
    if model is not None:
        body |= {"slots": model.slots, "kv_cells": model.num_cells, "engine": asdict(model.engine.stats)}
    return json_response(body, status=503 if reasons else 200)
