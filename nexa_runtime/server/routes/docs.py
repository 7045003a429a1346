"""``GET /openapi.json``, ``GET /docs`` and ``GET /redoc``: what this server can do, for whoever can reach it.

They are there while the server is open, see ``auth``; with keys there is nothing at these paths. Each is made
at its first use, in a thread, and what makes it is imported there: that takes a quarter of a second, which no
start needs.
"""

from collections.abc import Mapping
from functools import partial

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from nexa_runtime.server.services import services


async def openapi(request: Request) -> Response:
    """The API's document."""
    services(request).gate.check_reader(request)
    return Response(await run_sync(_document), media_type="application/json")


async def docs(request: Request) -> Response:
    """The document as a page from which requests can be sent."""
    services(request).gate.check_reader(request)
    html, headers = await run_sync(partial(_page, is_live=True))
    return HTMLResponse(html, headers=headers)


async def redoc(request: Request) -> Response:
    """The document as a page to read."""
    services(request).gate.check_reader(request)
    html, headers = await run_sync(partial(_page, is_live=False))
    return HTMLResponse(html, headers=headers)


def _document() -> bytes:
    from nexa_runtime.server.openapi import document_bytes

    return document_bytes()


def _page(*, is_live: bool) -> tuple[str, Mapping[str, str]]:
    from nexa_runtime.server.pages import page

    return page(is_live=is_live)
