"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.errors import ModelNotAllowedError
from nexa_runtime.server.errors import json_response
from nexa_runtime.server.services import services, tenant_of
from nexa_runtime.serving.pool import LoadedModel
from nexa_runtime.serving.tenants import is_allowed


async def list_models(request: Request) -> Response:
    """Every name that a model is served under, as far as the tenant may use it."""
    tenant = await tenant_of(request)
    pool = services(request).dispatcher.pool
    data = [
        _model_body(name, model)
        for model in pool.models()
        if is_allowed(tenant, model)
        for name in model.names
    ]
    return json_response({"object": "list", "data": data})


async def get_model(request: Request) -> Response:
    """One of these names."""
    tenant = await tenant_of(request)
    name = request.path_params["name"]
    model = services(request).dispatcher.pool.find(name)
    if not is_allowed(tenant, model):
        raise ModelNotAllowedError(name)
    return json_response(_model_body(name, model))


def _model_body(name: str, model: LoadedModel) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "nexa-runtime",
        "context_length": model.max_sequence_tokens or model.max_embedding_tokens,
        "kinds": sorted(kind.value for kind in model.kinds),
    }
