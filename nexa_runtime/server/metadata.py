"""What the server says of itself to whoever discovers it: ``GET /v1/metadata``.

Owns the document and what of it everyone may know. Its ranges and schemas come from the wire types and the
table of endpoints; nothing is written twice. It holds no secret: on a server that is not open it names the
default model only, as ``/readyz`` does, for which models a tenant may use is nobody else's business.
``routes/metadata`` serves it, ``discovery`` registers a few words of it.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

import orjson

from nexa_runtime import __version__
from nexa_runtime.config import Settings
from nexa_runtime.llama import SamplingParams
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.metadata_shapes import (
    BoxLimits,
    Capabilities,
    Domain,
    EndpointAbout,
    ModelAbout,
    Option,
    Resources,
)
from nexa_runtime.server.protocol.sampling import SamplingFields
from nexa_runtime.serving.library import ModelSource
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.machine import num_usable_cores
from nexa_runtime.serving.pool import ModelPool
from nexa_runtime.tenancy.admission import longest_queue

_DESCRIPTION = "A multi-tenant runtime for local language models."

_OPTIONS = (
    "max_tokens", *SamplingFields.model_fields, "n", "reasoning_effort", "reasoning_budget_tokens",
)  # fmt: skip
"""Fields of a chat that a UI may offer, besides the model."""

_OTHER_NAMES = {"repeat_last_n": "penalty_last_n"}
"""Fields that ``SamplingParams`` calls otherwise."""


class About:
    """Describes a pool's server. ``is_open``: everyone who reaches it may use, and know, all models."""

    def __init__(self, pool: ModelPool, settings: Settings, *, is_open: bool) -> None:
        self._pool = pool
        self._settings = settings
        self._is_open = is_open

    def summary(self) -> dict[str, object]:
        """For whoever only looks for a server."""
        return {"version": __version__, "domains": _domains(self._kinds())}

    def prepare(self) -> None:
        """Make what is the same each time, unless that was done: a quarter of a second. Any thread."""
        _described()

    def document(self) -> bytes:
        """The whole of it, as JSON, after ``prepare``."""
        kinds = self._kinds()
        name = self._settings.discovery.service_name
        endpoints, schemas = _described()
        body = {
            "schema_version": "v1",
            "name": name,
            **self.summary(),
            "service": {"name": name, "version": __version__, "description": _DESCRIPTION},
            "capabilities": self._capabilities(kinds),
            "endpoints": orjson.Fragment(endpoints),
            "ui": {"options": list(self._options())},
            "resources": self._resources(),
            "limits": self._limits(),
            "models": self._models(),
            "components": {"schemas": orjson.Fragment(schemas)},
        }
        return orjson.dumps(body)

    def _kinds(self) -> frozenset[Kind]:
        """What can be asked of some model, as far as that is known."""
        known = [model.kinds for model in self._pool.models()]
        known += [source.kinds for source in self._pool.sources() if source.kinds is not None]
        return frozenset().union(*known)

    def _capabilities(self, kinds: Collection[Kind]) -> Capabilities:
        chats = Kind.CHAT in kinds
        generates = chats or Kind.COMPLETION in kinds
        return {
            "domains": _domains(kinds),
            "modalities": ["text"],
            "max_concurrency": self._settings.engine.slots,
            "streaming": generates,
            "chat": chats,
            "tools": chats,
            "json_schema": generates,
            "grammar": generates,
            "reasoning": chats,
            "logprobs": generates,
            "lora": any(one["lora"] for one in self._models()),
            "embeddings": Kind.EMBEDDING in kinds,
            "rerank": Kind.RERANK in kinds,
        }

    def _options(self) -> Iterator[Option]:
        default = self._pool.default
        models = [name for one in self._models() for name in one["names"]]
        yield {
            "key": "model", "label": "Model", "type": "enum", "values": [*models],
            "default": models[0] if models else None,
        }  # fmt: skip
        sampling = SamplingParams() if default is None else default.sampling
        defaults = {"max_tokens": self._settings.serving.default_max_tokens, "n": 1}
        for name, schema in _option_schemas().items():
            option = _option(name, schema)
            option["default"] = getattr(sampling, _OTHER_NAMES.get(name, name), defaults.get(name))
            if name == "max_tokens" and default is not None and default.max_sequence_tokens:
                option["max"] = default.max_sequence_tokens
            yield option

    def _resources(self) -> Resources:
        pool = self._pool
        return {
            "cpu": str(self._settings.engine.threads or num_usable_cores()),
            "memory": f"{-(-pool.used_bytes // 2**20)}Mi",
            "gpu": "used" if any(model.model.is_on_gpu for model in pool.models()) else "none",
            "memory_budget_bytes": pool.budget_bytes,
            "memory_used_bytes": pool.used_bytes,
        }

    def _limits(self) -> BoxLimits:
        model, settings = self._pool.default, self._settings
        return {
            "slots": settings.engine.slots,
            "kv_cells": None if model is None else model.num_cells,
            "max_context_tokens": None if model is None else model.max_sequence_tokens,
            "max_input_tokens": None if model is None else model.max_embedding_tokens,
            "max_queue": longest_queue(settings.serving.max_queue, settings.engine.slots),
            "max_body_bytes": settings.server.max_body_bytes,
            "body_timeout_s": settings.server.body_timeout_s,
            "request_timeout_s": settings.serving.request_timeout_s,
        }

    def _models(self) -> list[ModelAbout]:
        """Those that everyone may know of, the default first."""
        default = self._pool.library.default
        others = [one for one in self._pool.sources() if default is None or one.id != default.id]
        shown = [*([default] if default else []), *(others if self._is_open else [])]
        loaded = {model.id: model for model in self._pool.models()}
        return [_model(source, loaded.get(source.id), source is default) for source in shown]


def _domains(kinds: Collection[Kind]) -> list[Domain]:
    """What kinds of models gateways look for here; both, until it is known."""
    generates = not kinds or Kind.CHAT in kinds or Kind.COMPLETION in kinds
    embeds = not kinds or Kind.EMBEDDING in kinds
    domains: list[tuple[Domain, bool]] = [("llm", generates), ("embeddings", embeds)]
    return [domain for domain, is_so in domains if is_so]


def _model(source: ModelSource, model: LoadedModel | None, is_default: bool) -> ModelAbout:
    kinds = source.kinds if model is None else model.kinds
    context_tokens = source.context_tokens
    if model is not None:
        context_tokens = model.max_sequence_tokens or model.max_embedding_tokens
    return {
        "id": source.id,
        "names": list(source.names),
        "is_default": is_default,
        "is_loaded": model is not None,
        "kinds": None if kinds is None else sorted(kind.value for kind in kinds),
        "context_length": context_tokens,
        "size_bytes": source.size_bytes,
        "lora": [] if source.spec is None else [one.name for one in source.spec.engine.adapters],
    }


def _option(name: str, schema: Mapping[str, Any]) -> Option:
    """A field of a body as a UI may offer it, without its default."""
    option: Option = {
        "key": name,
        "label": name.replace("_", " ").capitalize(),
        "type": "json",
        "default": None,
    }
    if "enum" in schema:
        option["type"], option["values"] = "enum", list(schema["enum"])
    elif schema.get("type") in ("number", "integer", "boolean", "string"):
        option["type"] = schema["type"]
    if "minimum" in schema:
        option["min"], option["max"] = schema["minimum"], schema["maximum"]
    if "description" in schema:
        option["description"] = schema["description"]
    return option


@cache
def _option_schemas() -> Mapping[str, Mapping[str, Any]]:
    """The JSON schema of each of these fields, but for null."""
    properties = ChatRequest.model_json_schema()["properties"]
    return {name: {**properties[name], **properties[name]["anyOf"][0]} for name in _OPTIONS}


@cache
def _described() -> tuple[bytes, bytes]:
    """What a gateway may call, and the schemas that this refers to, of the API's document."""
    # Their import takes time that no start needs.
    from nexa_runtime.server.openapi import document
    from nexa_runtime.server.protocol.endpoints import ENDPOINTS, Access

    described = document([one for one in ENDPOINTS if one.access in (Access.TENANT, Access.PUBLIC)])
    endpoints = [
        _endpoint(path, method, operation)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    return orjson.dumps(endpoints), orjson.dumps(described["components"]["schemas"])


def _endpoint(path: str, method: str, operation: Mapping[str, Any]) -> EndpointAbout:
    about: EndpointAbout = {
        "method": method.upper(),
        "path": path,
        "operation_id": operation["operationId"],
        "summary": operation["summary"],
        "access": operation["tags"][0],
    }
    content = operation["responses"].get("200", {}).get("content", {})
    if (answer := content.get("application/json")) is not None:
        about["response_schema"] = answer["schema"]["$ref"]
    if (events := content.get("text/event-stream")) is not None:
        about["event_schema"] = events["x-nexa-event"]
    if "requestBody" in operation:
        about["request_schema"] = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return about
