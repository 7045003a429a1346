"""``GET /api/version``, ``GET /api/tags`` and ``POST /api/show``: what tools that know Ollama look at first.

A read-only view, in Ollama's words, of what ``/v1/models`` shows: the names that a tenant may use. Nothing
here generates: such tools find OpenAI's API beside it.
"""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

import nexa_runtime
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.server.errors import json_response
from nexa_runtime.server.ignored import ignored_header
from nexa_runtime.server.protocol.ollama import FIELDS, ShowRequest
from nexa_runtime.server.protocol.parameters import read_fields
from nexa_runtime.server.services import services, tenant_and_body, tenant_of
from nexa_runtime.serving.library import ModelSource
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.tenants import is_allowed

_CAPABILITIES = {Kind.COMPLETION: "completion", Kind.EMBEDDING: "embedding", Kind.RERANK: "rerank"}
"""Ollama's words, and one that it has none for."""


async def version(_: Request) -> Response:
    """Of Nexa Runtime; it names no model, so anyone may ask."""
    return json_response({"version": nexa_runtime.__version__})


async def tags(request: Request) -> Response:
    """Every name that ``/v1/models`` has."""
    tenant = await tenant_of(request)
    models = [
        _entry(name, source, _loaded(request, source))
        for source in services(request).dispatcher.pool.sources()
        if is_allowed(tenant, source.names)
        for name in source.names
    ]
    return json_response({"models": models})


async def show(request: Request) -> Response:
    """One of these names; what only loading tells is left out until then."""
    tenant, body = await tenant_and_body(request)
    wire, ignored = read_fields(ShowRequest, body, FIELDS)
    name = wire.model or wire.name
    if name is None:
        raise InvalidRequestError("model: is required.", param="model")
    source = services(request).dispatcher.find_model(tenant, name)
    model = _loaded(request, source)
    kinds = model.kinds if model is not None else source.kinds or frozenset()
    shown = {
        "details": _details(source, model),
        "model_info": _model_info(source, model),
        "capabilities": sorted(_CAPABILITIES[kind] for kind in kinds if kind in _CAPABILITIES),
        "modified_at": _modified_at(source),
        "template": (model.model.chat_template or "") if model is not None else "",
        "license": (source.record.license or "") if source.record is not None else "",
    }
    return json_response(shown, headers=ignored_header(ignored))


def _loaded(request: Request, source: ModelSource) -> LoadedModel | None:
    models = services(request).dispatcher.pool.models()
    return next((model for model in models if model.id == source.id), None)


def _entry(name: str, source: ModelSource, model: LoadedModel | None) -> dict[str, object]:
    return {
        "name": name,
        "model": name,
        "modified_at": _modified_at(source),
        "size": source.size_bytes,
        "digest": source.digest,
        "details": _details(source, model),
    }


def _details(source: ModelSource, model: LoadedModel | None) -> dict[str, object]:
    architecture, num_parameters = _architecture(source, model)
    return {
        "parent_model": "",
        "format": "gguf",
        "family": architecture,
        "families": [architecture] if architecture else [],
        "parameter_size": _size(num_parameters),
        "quantization_level": (source.record.quant or "") if source.record is not None else "",
    }


def _model_info(source: ModelSource, model: LoadedModel | None) -> dict[str, object]:
    architecture, num_parameters = _architecture(source, model)
    context_tokens = model.model.context_tokens if model is not None else source.context_tokens
    return {
        "general.architecture": architecture,
        "general.parameter_count": num_parameters,
        f"{architecture}.context_length": context_tokens,
    }


def _architecture(source: ModelSource, model: LoadedModel | None) -> tuple[str, int | None]:
    """And the number of parameters, as far as they are known."""
    if model is not None:
        return model.model.architecture, model.model.num_parameters
    if source.record is not None:
        return source.record.architecture, source.record.num_parameters
    return "", None


def _size(num_parameters: int | None) -> str:
    """As Ollama writes it: ``8.0B``, ``137M``."""
    if num_parameters is None:
        return ""
    return f"{num_parameters / 1e9:.1f}B" if num_parameters >= 1e9 else f"{num_parameters / 1e6:.0f}M"


def _modified_at(source: ModelSource) -> str:
    return datetime.fromtimestamp(source.created, UTC).isoformat()
