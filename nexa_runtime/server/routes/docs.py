"""``GET /openapi.json``, ``GET /docs`` and ``GET /redoc``: what this server can do, for whoever can reach it.

They are there while the server is open, see ``auth``; with keys there is nothing at these paths. Each is made
at its first use, in a thread: that takes a quarter of a second.
"""

from functools import partial

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from nexa_runtime.server.openapi import document_bytes
from nexa_runtime.server.pages import page
from nexa_runtime.server.services import services


async def openapi(request: Request) -> Response:
    """The API's document."""
    services(request).gate.check_reader(request)
    return Response(await run_sync(document_bytes), media_type="application/json")


async def docs(request: Request) -> Response:
    """The document as a page from which requests can be sent."""
    services(request).gate.check_reader(request)
    html, headers = await run_sync(partial(page, is_live=True))
    return HTMLResponse(html, headers=headers)


async def redoc(request: Request) -> Response:
    """The document as a page to read."""
    services(request).gate.check_reader(request)
    html, headers = await run_sync(partial(page, is_live=False))
    return HTMLResponse(html, headers=headers)
