"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from starlette.requests import Request
from starlette.responses import Response

from nexa_runtime.server.errors import json_response
from nexa_runtime.server.services import services, tenant_of
from nexa_runtime.serving.library import ModelSource
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.tenants import is_allowed


async def list_models(request: Request) -> Response:
    """Every name that a model is served under, as far as the tenant may use it."""
    tenant = await tenant_of(request)
    loaded = _loaded(request)
    data = [
        _model_body(name, source, loaded.get(source.id))
        for source in services(request).dispatcher.pool.sources()
        if is_allowed(tenant, source.names)
        for name in source.names
    ]
    return json_response({"object": "list", "data": data})


async def get_model(request: Request) -> Response:
    """One of these names."""
    name = request.path_params["name"]
    tenant = await tenant_of(request)
    source = services(request).dispatcher.find_model(tenant, name)
    return json_response(_model_body(name, source, _loaded(request).get(source.id)))


def _loaded(request: Request) -> dict[str, LoadedModel]:
    return {model.id: model for model in services(request).dispatcher.pool.models()}


def _model_body(name: str, source: ModelSource, model: LoadedModel | None) -> dict[str, object]:
    """What only loading tells is null until then. ``lora``: adapters that a request may ask for."""
    kinds = model.kinds if model is not None else source.kinds
    context_tokens = source.context_tokens
    adapters = () if source.spec is None else source.spec.engine.adapters
    if model is not None:
        context_tokens = model.max_sequence_tokens or model.max_embedding_tokens
    return {
        "id": name,
        "object": "model",
        "created": source.created,
        "owned_by": "nexa-runtime",
        "context_length": context_tokens,
        "kinds": None if kinds is None else sorted(kind.value for kind in kinds),
        "lora": [{"name": one.name, "scale": one.scale} for one in adapters],
    }
