"""The API's document: OpenAPI 3.1, from the table of endpoints and the types that they name.

Owns how an endpoint becomes an operation, and a type a JSON schema. It is a function of the table alone: it
never looks at a request or at a running server. ``routes/docs`` serves it.

Deliberate: a field that is refused is no property; the operation's description names it, and
``x-nexa-refused``. An event of a stream is described in ``x-nexa-event``: OpenAPI 3.1 has no word for it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from nexa_runtime import __version__, errors
from nexa_runtime.server.errors import anthropic_type, status_of_class
from nexa_runtime.server.protocol.anthropic_shapes import AnthropicErrorBody
from nexa_runtime.server.protocol.endpoints import ENDPOINTS, EVENTS, Access, Endpoint
from nexa_runtime.server.protocol.parameters import Support
from nexa_runtime.tenancy.tenant import TENANT_ID

Json = dict[str, Any]

_ABOUT = (
    "A multi-tenant runtime for local language models. Any field of a body that is not required may be null."
    " Fields that are not known are accepted and named in `x-nexa-ignored`. A path that does not exist is"
    " answered with 404, a method that a path does not take with 405, both in the shape of `ErrorBody`, and"
    " under `/v1/messages` in that of `AnthropicErrorBody`."
)

_RATE_HEADERS = {
    "x-ratelimit-limit-requests": "The tenant's requests within 60 seconds, if they are limited.",
    "x-ratelimit-remaining-requests": "How many of them are left.",
    "x-ratelimit-reset-requests": "When all of them are there again, such as `12s` or `1m0s`.",
    "x-ratelimit-limit-tokens": "The tenant's tokens within 60 seconds, if they are limited.",
    "x-ratelimit-remaining-tokens": "How many of them are left.",
    "x-ratelimit-reset-tokens": "When all of them are there again.",
}
_RETRY_HEADERS = {
    "retry-after": "Seconds until it is worth another try.",
    "retry-after-ms": "The same in milliseconds.",
}
_HEADERS = {
    "x-request-id": "The request's id, the client's own if it sent a sane one.",
    "request-id": "The same, where Anthropic's clients look for it.",
    "x-nexa-ignored": "Fields of the body that nobody read.",
    "x-nexa-clamped": "To what the number of output tokens was lowered.",
    "x-nexa-lora": "The adapters that the answer was computed with, each with its scale.",
    **_RATE_HEADERS,
    **_RETRY_HEADERS,
}

_ANSWER_HEADERS = ("x-nexa-clamped", "x-nexa-lora")
"""Of answers that are generated."""

_INTERNAL = (
    errors.ConfigError, errors.ModelFileError, errors.ClientError, errors.SourceUnavailableError,
)  # fmt: skip
"""For the terminal and the log; never on the wire."""

_FURTHER_CODES = {404: {"not_found", errors.TenantUnknownError.code}}
"""Of no class, or of one that has this status for the admin only."""

_KEYS: list[Json] = [{}, {"bearer": []}, {"x_api_key": []}]
"""A server without keys wants none."""

_PATH_SCHEMAS: Mapping[str, Json] = {"tenant_id": {"type": "string", "pattern": f"^{TENANT_ID.pattern}$"}}


@cache
def document_bytes() -> bytes:
    """The document as JSON; it is made once."""
    return orjson.dumps(document())


def document(endpoints: Sequence[Endpoint] = ENDPOINTS) -> Json:
    """The whole document."""
    schemas, components = _schemas(endpoints)
    paths: dict[str, Json] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    refused = dict.fromkeys((status, one.error) for one in endpoints for status in one.statuses)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nexa Runtime", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                _error_name(status, kind, schemas): _error(status, kind, schemas)
                for status, kind in sorted(refused, key=lambda one: one[0])
            },
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
            },
            "parameters": {
                "tenant": _parameter("header", "X-Tenant-Id", "The tenant, where no key says it."),
                "wait": _parameter("header", "x-nexa-wait", "0: do not wait while the model is loaded."),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


# Types.


class _Generator(GenerateJsonSchema):
    """As pydantic's, without titles of fields and without saying that what is absent is null."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        return {key: value for key, value in described.items() if (key, value) != ("default", None)}


def _schemas(endpoints: Sequence[Endpoint]) -> tuple[Mapping[object, JsonSchemaValue], Json]:
    """The JSON schema of each type of the table, and what these schemas refer to."""
    requests = dict.fromkeys(one.request for one in endpoints if one.request is not None)
    answers: dict[Any, None] = dict.fromkeys(
        kind
        for one in endpoints
        for kind in (one.error, one.answer, one.event, *one.others.values())
        if kind is not None
    )
    inputs: list[tuple[object, JsonSchemaMode, TypeAdapter[Any]]] = [
        *((kind, "validation", TypeAdapter(kind)) for kind in requests),
        *((kind, "serialization", TypeAdapter(kind)) for kind in answers),
    ]
    found, shared = TypeAdapter.json_schemas(
        inputs,
        ref_template="#/components/schemas/{model}",
        schema_generator=_Generator,
    )
    schemas = {kind: schema for (kind, _), schema in found.items()}
    components: Json = shared["$defs"]
    for one in {one.request: one for one in endpoints}.values():
        if one.request is not None:
            _put_support(components[_target(schemas[one.request])]["properties"], one)
    for component in components.values():
        if "description" in component:
            component["description"] = " ".join(component["description"].replace("``", "`").split())
    return schemas, components


def _put_support(properties: Json, endpoint: Endpoint) -> None:
    """Say of a body what its type cannot: what becomes of its fields, and that they may be null."""
    for name in endpoint.of(Support.REFUSED):
        properties.pop(name, None)
    for name in endpoint.of(Support.HARMLESS):
        properties.setdefault(name, {"description": "Accepted; changes nothing in the answer."})
    for name, schema in properties.items():
        if "default" in schema:
            default = schema.pop("default")
            properties[name] = {"anyOf": [schema, {"type": "null"}], "default": default}


def _target(schema: JsonSchemaValue) -> str:
    """The name of the component that a schema refers to."""
    return str(schema["$ref"]).rpartition("/")[2]


# Operations.


def _operation(endpoint: Endpoint, schemas: Mapping[object, JsonSchemaValue]) -> Json:
    refused = endpoint.of(Support.REFUSED)
    names = ", ".join(f"`{name}`" for name in refused)
    operation: Json = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "description": f"Refused by name, with 400 `unsupported_parameter`: {names}." if refused else "",
        "tags": [endpoint.access.value],
        "security": _KEYS if endpoint.access in (Access.TENANT, Access.ADMIN) else [],
        "parameters": list(_parameters(endpoint)),
        "responses": dict(_responses(endpoint, schemas)),
    }
    if endpoint.request is not None:
        content = {"schema": schemas[endpoint.request], "example": endpoint.example}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    if refused:
        operation["x-nexa-refused"] = refused
    return operation


def _parameters(endpoint: Endpoint) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)}", endpoint.path):
        yield {**_parameter("path", name), "schema": _PATH_SCHEMAS.get(name, {"type": "string"})}
    for name, description in endpoint.query.items():
        yield _parameter("query", name, description)
    if endpoint.access is Access.TENANT:
        yield {"$ref": "#/components/parameters/tenant"}
        if endpoint.request is not None:
            yield {"$ref": "#/components/parameters/wait"}


def _parameter(place: str, name: str, description: str = "") -> Json:
    found: Json = {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}
    return found | {"description": description} if description else found


def _responses(endpoint: Endpoint, schemas: Mapping[object, JsonSchemaValue]) -> Iterator[tuple[str, Json]]:
    content: Json = {}
    if endpoint.answer is not None:
        content[endpoint.answer_type] = {"schema": schemas[endpoint.answer]}
    if endpoint.event is not None:
        content[EVENTS] = {"x-nexa-event": schemas[endpoint.event]}
    headers = _id_headers(endpoint.error)
    if endpoint.request is not None:
        headers.append("x-nexa-ignored")
    if endpoint.access is Access.TENANT:
        headers += [*(_ANSWER_HEADERS if endpoint.event is not None else []), *_RATE_HEADERS]
    if content:
        yield "200", {"description": "The answer", "headers": _headers(headers), "content": content}
    for status, kind in endpoint.others.items():
        described = {"application/json": {"schema": schemas[kind]}}
        yield str(status), {"description": HTTPStatus(status).phrase, "content": described}
    for status in endpoint.statuses:
        name = _error_name(status, endpoint.error, schemas)
        yield str(status), {"$ref": f"#/components/responses/{name}"}


def _error_name(status: int, kind: object, schemas: Mapping[object, JsonSchemaValue]) -> str:
    return f"{_target(schemas[kind])}_{status}"


def _error(status: int, kind: object, schemas: Mapping[object, JsonSchemaValue]) -> Json:
    names = ", ".join(f"`{code}`" for code in _codes(status))
    if kind is AnthropicErrorBody:
        names = f"`{anthropic_type(status)}`"
    retry = _RETRY_HEADERS if status in (429, 503) else ()
    return {
        "description": f"{HTTPStatus(status).phrase}: {names}",
        "headers": _headers([*_id_headers(kind), *_RATE_HEADERS, *retry]),
        "content": {"application/json": {"schema": schemas[kind]}},
    }


def _codes(status: int) -> list[str]:
    """The codes of all errors with this status."""

    def classes(cls: type[errors.NexaError]) -> Iterator[type[errors.NexaError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from classes(child)

    found = {
        cls.code
        for cls in classes(errors.NexaError)
        if "code" in vars(cls) and not issubclass(cls, _INTERNAL) and status_of_class(cls) == status
    }
    return sorted(found | _FURTHER_CODES.get(status, set()))


def _id_headers(error: object) -> list[str]:
    return ["x-request-id", *(["request-id"] if error is AnthropicErrorBody else [])]


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
