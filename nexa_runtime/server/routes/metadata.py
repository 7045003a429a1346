"""``GET /v1/metadata``: who this server is, for gateways that discover it, without a key."""

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.services import services


async def metadata(request: Request) -> Response:
    """What everyone may know of this server; see ``server/metadata``."""
    services(request).gate.check_reader(request)
    await run_sync(services(request).about.prepare)
    return Response(services(request).about.document(), media_type="application/json")
