"""The API's document: it says of every endpoint what is true, and whatever it allows is answered sanely.

Schemathesis asks what the document describes; hypothesis' own tests of bodies are in ``test_protocol_any``.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from jsonschema import Draft202012Validator
from schemathesis.config import SchemathesisConfig
from starlette.routing import Route

from nexa_runtime.server.openapi import document
from nexa_runtime.server.protocol.endpoints import ENDPOINTS, HTML, Endpoint
from nexa_runtime.server.protocol.parameters import Support
from tests.hub_models import DEMO, demo_hub
from tests.support import EventStream, LiveServer

Json = dict[str, Any]

DOCUMENT = document()
KEY = "sk-test"


def closed(schema: Any) -> Any:
    """The same schema, with no further property anywhere than those that it names."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **found} if "properties" in found else found


COMPONENTS = closed(DOCUMENT["components"])


def check(value: object, schema: Json) -> None:
    """Hold a value to a schema of the document, nothing more in it than is documented."""
    Draft202012Validator({**closed(schema), "components": COMPONENTS}).validate(value)


def content(method: str, path: str, status: int = 200) -> Json:
    """What an operation answers with a status, by content type."""
    response = DOCUMENT["paths"][path][method]["responses"][str(status)]
    if "$ref" in response:
        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return dict(response["content"])


# The document itself.


def routes_of(server: LiveServer) -> set[tuple[str, str]]:
    return {
        (method, route.path_format)
        for route in server.app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }


def test_every_route_is_described_and_everything_described_is_there(server: LiveServer) -> None:
    assert {(one.method, one.path) for one in ENDPOINTS} == routes_of(server)
    assert len({one.name for one in ENDPOINTS}) == len(ENDPOINTS)


def test_what_is_served_is_the_document(server: LiveServer) -> None:
    response = server.http.get("/openapi.json")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == DOCUMENT


def test_its_schemas_are_schemas_and_refer_to_what_is_there() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in re.findall(r"'\$ref': '#/components/(\w+)/([\w.-]+)'", str(DOCUMENT)):
        assert reference[1] in DOCUMENT["components"][reference[0]]


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.request], ids=lambda one: one.path)
def test_the_fields_of_a_body_are_those_of_its_type(endpoint: Endpoint) -> None:
    assert endpoint.request is not None
    known = {one.alias or name for name, one in endpoint.request.model_fields.items()}
    assert known == set(endpoint.of(Support.HONOURED))
    described = DOCUMENT["components"]["schemas"][endpoint.request.__name__]
    assert set(described["properties"]) == known | set(endpoint.of(Support.HARMLESS))
    assert described["additionalProperties"] is True
    for name in set(described["properties"]) - set(described["required"]):
        Draft202012Validator({**described["properties"][name], "components": COMPONENTS}).validate(None)


# Real answers are what is described.

ASKED: list[tuple[str, Json]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}]}),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Hello!"}],
            "logprobs": True,
            "top_logprobs": 2,
            "n": 2,
            "max_tokens": 5,
            "timings": True,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "What's the weather like in Lima?"}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "get_weather",
                        "parameters": {
                            "type": "object",
                            "properties": {"city": {"type": "string", "maxLength": 12}},
                            "required": ["city"],
                        },
                    },
                }
            ],
            "tool_choice": "required",
        },
    ),
    ("/v1/completions", {"prompt": ["Once", "upon"], "max_tokens": 4, "logprobs": 2, "timings": True}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 3, "n": 2, "echo": True}),
]


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_an_answer_is_what_is_described(server: LiveServer, path: str, body: Json) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    check(response.json(), content("post", path)["application/json"]["schema"])


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_the_events_of_a_stream_are_what_is_described(server: LiveServer, path: str, body: Json) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with server.http.stream("POST", path, json=body | options) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, last = EventStream(response).events()
    assert last == "[DONE]"
    assert len(events) > 2
    for event in events:
        check(event, content("post", path)["text/event-stream"]["x-nexa-event"])


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_what_is_described(server: LiveServer, encoding: str) -> None:
    response = server.http.post("/v1/embeddings", json={"input": ["a", "b"], "encoding_format": encoding})
    check(response.json(), content("post", "/v1/embeddings")["application/json"]["schema"])


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models/{name}", "/v1/models/demo"),
        ("/health", "/health"),
        ("/readyz", "/readyz"),
        ("/admin/models", "/admin/models"),
        ("/admin/tenants", "/admin/tenants"),
        ("/admin/tenants/{tenant_id}/config", "/admin/tenants/demo/config"),
        ("/openapi.json", "/openapi.json"),
    ],
)
def test_what_is_read_is_what_is_described(server: LiveServer, path: str, url: str) -> None:
    assert server.chat("Hi", max_tokens=1).status_code == 200
    response = server.http.get(url)
    assert response.status_code == 200
    check(response.json(), content("get", path)["application/json"]["schema"])


def test_what_becomes_of_a_model_is_what_is_described(
    tmp_path: Path, make_server: Callable[..., LiveServer]
) -> None:
    with demo_hub() as hub:
        folders = {"NEXA_MODEL_STORE": str(tmp_path / "store"), "NEXA_STATE_DIR": str(tmp_path / "state")}
        server = make_server(**folders, NEXA_CTX_SIZE=2048, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
        pull = "/admin/models/pull"
        with server.http.stream("POST", pull, json={"model": DEMO}) as response:
            *events, last = EventStream(response).events()
        assert last == "[DONE]"
        assert events
        for event in events:
            check(event, content("post", pull)["text/event-stream"]["x-nexa-event"])
        for act in ("load", "unload"):
            response = server.http.post(f"/admin/models/{DEMO}:Q4_K_M/{act}")
            assert response.status_code == 200
            described = content("post", f"/admin/models/{{name}}/{act}")
            check(response.json(), described["application/json"]["schema"])


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.request], ids=lambda one: one.path)
def test_an_example_is_a_body_that_is_taken(server: LiveServer, endpoint: Endpoint) -> None:
    assert endpoint.request is not None
    assert endpoint.request.model_validate(endpoint.example)
    if endpoint.path.startswith("/admin"):  # it would bring a model from the hub
        return
    assert server.http.post(endpoint.path, json=endpoint.example).status_code == 200


@pytest.mark.parametrize("path", sorted(DOCUMENT["paths"]))
def test_a_method_that_is_not_described_is_not_taken(server: LiveServer, path: str) -> None:
    for method in {"get", "post", "put", "patch", "delete", "options"} - set(DOCUMENT["paths"][path]):
        response = server.http.request(method, path.format(name="demo", tenant_id="demo"))
        assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
        check(response.json(), {"$ref": "#/components/schemas/ErrorBody"})


# The pages.


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_names_every_endpoint_and_loads_nothing(server: LiveServer, path: str) -> None:
    response = server.http.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(HTML)
    assert all(f'id="{one.name}"' in response.text and one.path in response.text for one in ENDPOINTS)
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert re.search(r"(?:src|action)=|<link|@import|url\(|https?://", response.text) is None
    assert ("<script>" in response.text) == ("script-src" in policy) == (path == "/docs")


@pytest.mark.parametrize(
    "settings",
    [
        {"NEXA_API_KEY": KEY},
        {"NEXA_ADMIN_KEY": KEY},
        {"NEXA_TRUST_TENANT_HEADER": "true", "NEXA_TRUSTED_CIDRS": "127.0.0.0/8"},
    ],
)
def test_a_server_that_is_not_open_has_no_document(
    make_server: Callable[..., LiveServer], settings: Json
) -> None:
    server = make_server(**settings)
    for path in ("/openapi.json", "/docs", "/redoc"):
        for headers in ({}, {"Authorization": f"Bearer {KEY}"}):
            response = server.http.get(path, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
        assert server.http.post(path).status_code == 404


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/redoc"])
def test_only_loopback_names_read_the_document(server: LiveServer, path: str) -> None:
    response = server.http.get(path, headers={"Host": "evil.example"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "address_denied")


# Whatever the document allows, and what it does not.

CONFIG = SchemathesisConfig.from_dict(
    {
        "generation": {"max-examples": 40, "deterministic": True, "no-shrink": True},
        "phases": {"coverage": {"enabled": False}},
        "parameters": {"X-Tenant-Id": "demo"},
    }
)
API = schemathesis.openapi.from_dict(DOCUMENT, config=CONFIG)


def errors_are_in_shape(_: object, response: schemathesis.Response, case: schemathesis.Case[Any]) -> None:
    """Every error has the one shape, and none is the server's own fault: only a hub is out of reach."""
    if response.status_code >= 400 and case.path != "/readyz":
        check(response.json(), {"$ref": "#/components/schemas/ErrorBody"})
        assert response.status_code < 500 or response.json()["error"]["code"] == "hub_unavailable"


def events_are_as_described(_: object, response: schemathesis.Response, case: schemathesis.Case[Any]) -> None:
    """Those of a stream; a body is held to its schema by schemathesis itself."""
    if response.headers["content-type"][0].startswith("text/event-stream"):
        assert response.text is not None
        for data in re.findall(r"^data: ({.*)$", response.text, re.MULTILINE):
            described = content(case.method.lower(), case.path)["text/event-stream"]["x-nexa-event"]
            check(json.loads(data), described)


@API.parametrize()
def test_whatever_is_asked_is_answered_as_described(
    case: schemathesis.Case[Any], bounded: LiveServer
) -> None:
    case.call_and_validate(
        base_url=bounded.url,
        additional_checks=[errors_are_in_shape, events_are_as_described],
        excluded_checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.checks.positive_data_acceptance,
        ],
    )
    assert bounded.http.get("/health").status_code == 200
