"""``GET /console``, the owner's page, and ``GET /admin/live``, the stream that feeds it.

Owns what the page may load (nothing but that stream and the API of this server) and how often it hears. The
page itself holds nothing secret and needs no key; what it shows does. While nobody looks, nothing runs.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import cache
from importlib.resources import files

from anyio.to_thread import run_sync
from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from nexa_runtime.server.frames import frame
from nexa_runtime.server.live import snapshot
from nexa_runtime.server.policy import policy_headers
from nexa_runtime.server.services import Services, services
from nexa_runtime.server.stream import KEEP_ALIVE_S

INTERVAL_S = 1.0

_DATA = files("nexa_runtime") / "data"


async def console(request: Request) -> Response:
    """The page."""
    services(request).gate.check_reader(request)
    html, headers = await run_sync(_page)
    return HTMLResponse(html, headers=headers)


async def live(request: Request) -> Response:
    """What the box does, once a second."""
    services(request).gate.check_admin(request)
    return EventSourceResponse(_snapshots(services(request)), ping=KEEP_ALIVE_S, sep="\n")


async def _snapshots(all_services: Services) -> AsyncIterator[bytes]:
    while not all_services.dispatcher.is_draining:
        yield frame(snapshot(all_services))
        await asyncio.sleep(INTERVAL_S)


@cache
def _page() -> tuple[str, Mapping[str, str]]:
    html, style, script = (
        _DATA.joinpath(f"console.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    html = html.replace("{{ style }}", style).replace("{{ script }}", script)
    return html, policy_headers(style, script)
