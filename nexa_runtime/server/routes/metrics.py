"""``GET /metrics``: for Prometheus, in the text format or in OpenMetrics, as it asks."""

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.server.metrics import Metrics
from nexa_runtime.server.services import services


async def metrics(request: Request) -> Response:
    """All numbers, for the owner of the box."""
    services(request).gate.check_admin(request)
    return await scraped(request, services(request).metrics)


async def scraped(request: Request, numbers: Metrics) -> Response:
    """The answer to a scrape. ``?aliases=1`` adds the names that llama-server and vLLM have for the same;
    they have a colon, which Prometheus keeps for rules, so that not everyone wants them.
    """
    aliases = request.query_params.get("aliases", "0")
    if aliases not in ("0", "1"):
        raise InvalidRequestError(f"aliases is {aliases[:100]!r}, but must be 0 or 1.", param="aliases")
    text, content_type = await numbers.scrape(request.headers.get("accept", ""), has_aliases=aliases == "1")
    return Response(text, headers={"content-type": content_type})
