"""The API's document: it says of every endpoint what is true, and whatever it allows is answered sanely.

Schemathesis asks what the document describes; hypothesis' own tests of bodies are in ``test_protocol_any``.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from jsonschema import Draft202012Validator
from schemathesis.config import SchemathesisConfig
from starlette.routing import Route

from nexa_runtime.server.errors import is_anthropic
from nexa_runtime.server.openapi import document
from nexa_runtime.server.protocol.endpoints import ENDPOINTS, HTML, Endpoint
from nexa_runtime.server.protocol.parameters import Support
from tests.hub_models import DEMO, demo_hub
from tests.llama.reranker import write_encoder
from tests.support import EventStream, LiveServer, free_settings

Json = dict[str, Any]

DOCUMENT = document()
KEY = "sk-test"
RERANKS = ("/v1/rerank", "/v1/reranking", "/rerank")


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


def error_schema(path: str) -> Json:
    """The shape of errors under a path."""
    name = "AnthropicErrorBody" if is_anthropic(path) else "ErrorBody"
    return {"$ref": f"#/components/schemas/{name}"}


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
    assert not [name for name in COMPONENTS["schemas"] if "__" in name]  # of two types with one name
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in re.findall(r"'\$ref': '#/components/(\w+)/([\w.-]+)'", str(DOCUMENT)):
        assert reference[1] in DOCUMENT["components"][reference[0]]


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.request], ids=lambda one: one.path)
def test_the_fields_of_a_body_are_those_of_its_type(endpoint: Endpoint) -> None:
    assert endpoint.request is not None
    refused = set(endpoint.of(Support.REFUSED))
    known = {one.alias or name for name, one in endpoint.request.model_fields.items()} - refused
    assert known == set(endpoint.of(Support.HONOURED))
    described = DOCUMENT["components"]["schemas"][endpoint.request.__name__]
    assert set(described["properties"]) == known | set(endpoint.of(Support.HARMLESS))
    assert described["additionalProperties"] is True
    for name in set(described["properties"]) - set(described.get("required", ())):
        Draft202012Validator({**described["properties"][name], "components": COMPONENTS}).validate(None)


# Real answers are what is described.

QUESTION = {"role": "user", "content": "Hello!"}
WEATHER = {"role": "user", "content": "What's the weather like in Lima?"}
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
}
ASKED: list[tuple[str, Json]] = [
    ("/v1/chat/completions", {"messages": [QUESTION]}),
    (
        "/v1/chat/completions",
        {
            "messages": [QUESTION],
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
            "messages": [WEATHER],
            "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": PLACE}}],
            "tool_choice": "required",
        },
    ),
    ("/v1/completions", {"prompt": ["Once", "upon"], "max_tokens": 4, "logprobs": 2, "timings": True}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 3, "n": 2, "echo": True}),
    ("/v1/responses", {"input": "Hello!", "regex": "<think>\nYes.\n</think>\n\nHi"}),
    (
        "/v1/responses",
        {
            "input": "Hello!",
            "regex": "<think>\nYes.\n</think>\n\nHi",
            "reasoning": {"effort": "low", "summary": "auto"},
        },
    ),
    ("/v1/responses", {"input": "Hello!", "max_output_tokens": 2}),
    ("/v1/responses", {"input": "Hello!", "timings": True, "top_logprobs": 1, "user": "me"}),
    (
        "/v1/responses",
        {
            "input": [WEATHER],
            "tools": [{"type": "function", "name": "get_weather", "parameters": PLACE}],
            "tool_choice": {"type": "function", "name": "get_weather"},
            "text": {"verbosity": "medium"},
            "metadata": {"a": "b"},
        },
    ),
    ("/v1/messages", {"messages": [QUESTION], "stop_sequences": ["!"]}),
    (
        "/v1/messages",
        {
            "messages": [WEATHER],
            "tools": [{"name": "get_weather", "input_schema": PLACE}],
            "tool_choice": {"type": "any"},
        },
    ),
]


TAKEN: list[tuple[str, Json]] = [
    ("/v1/messages/count_tokens", {"messages": [QUESTION]}),
    ("/v1/chat/completions/input_tokens", {"messages": [QUESTION]}),
    ("/apply-template", {"messages": [QUESTION]}),
    ("/tokenize", {"content": "Hello, ¿qué tal? 日本"}),
    ("/tokenize", {"content": "Hello, ¿qué tal? 日本", "with_pieces": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
    ("/api/show", {"model": "demo"}),
]


@pytest.mark.parametrize(("path", "body"), [*ASKED, *TAKEN])
def test_an_answer_is_what_is_described(server: LiveServer, path: str, body: Json) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    check(response.json(), content("post", path)["application/json"]["schema"])


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_the_events_of_a_stream_are_what_is_described(server: LiveServer, path: str, body: Json) -> None:
    options: Json = {"stream": True}
    if path.endswith("completions"):
        options["stream_options"] = {"include_usage": True}
    with server.http.stream("POST", path, json=body | options) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = list(EventStream(response).events())
    if path.endswith("completions"):
        assert events.pop() == "[DONE]"
    assert len(events) > 2
    for event in events:
        check(event, content("post", path)["text/event-stream"]["x-nexa-event"])


def test_what_is_thought_is_what_is_described(thinker: LiveServer) -> None:
    body: Json = {
        "messages": [QUESTION],
        "thinking": {"type": "enabled", "budget_tokens": 4},
        "max_tokens": 16,
    }
    described = content("post", "/v1/messages")
    answer = thinker.http.post("/v1/messages", json=body).json()
    assert answer["content"][0]["type"] == "thinking"
    check(answer, described["application/json"]["schema"])
    with thinker.http.stream("POST", "/v1/messages", json=body | {"stream": True}) as response:
        events = list(EventStream(response).events())
    assert "signature_delta" in str(events)
    for event in events:
        check(event, described["text/event-stream"]["x-nexa-event"])


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    path = write_encoder(tmp_path_factory.mktemp("rerank") / "ranker.gguf")
    with LiveServer(free_settings(NEXA_MODEL_ID=str(path))) as live:
        yield live


@pytest.mark.parametrize("path", RERANKS)
def test_a_ranking_is_what_is_described(ranker: LiveServer, path: str) -> None:
    for fields in ({}, {"return_documents": False}, {"return_documents": None, "raw_scores": True}):
        response = ranker.http.post(path, json={"query": "a", "documents": ["b", {"text": "c"}], **fields})
        check(response.json(), content("post", path)["application/json"]["schema"])


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_what_is_described(server: LiveServer, encoding: str) -> None:
    response = server.http.post("/v1/embeddings", json={"input": ["a", "b"], "encoding_format": encoding})
    check(response.json(), content("post", "/v1/embeddings")["application/json"]["schema"])


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/v1/metadata", "/v1/metadata"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/{name}", "/v1/models/demo"),
        ("/api/version", "/api/version"),
        ("/api/tags", "/api/tags"),
        ("/health", "/health"),
        ("/readyz", "/readyz"),
        ("/admin/models", "/admin/models"),
        ("/admin/tenants", "/admin/tenants"),
        ("/admin/usage", "/admin/usage?since=24h"),
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
def test_an_example_is_a_body_that_is_taken(
    server: LiveServer, ranker: LiveServer, endpoint: Endpoint
) -> None:
    assert endpoint.request is not None
    assert endpoint.request.model_validate(endpoint.example)
    if endpoint.path.startswith("/admin"):  # it would bring a model from the hub
        return
    asked = ranker if endpoint.path in RERANKS else server
    assert asked.http.post(endpoint.path, json=endpoint.example).status_code == 200


@pytest.mark.parametrize("path", sorted(DOCUMENT["paths"]))
def test_a_method_that_is_not_described_is_not_taken(server: LiveServer, path: str) -> None:
    for method in {"get", "post", "put", "patch", "delete", "options"} - set(DOCUMENT["paths"][path]):
        response = server.http.request(method, path.format(name="demo", tenant_id="demo", id="x"))
        assert response.status_code == 405
        check(response.json(), error_schema(path))


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_no_response_is_kept(server: LiveServer, method: str) -> None:
    response = server.http.request(method, "/v1/responses/resp_1")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    check(response.json(), content(method.lower(), "/v1/responses/{id}", 404)["application/json"]["schema"])


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"messages": [QUESTION], "thread": {}}, 400), ({"messages": [QUESTION], "model": "x"}, 404)],
)
def test_anthropics_errors_are_what_is_described(
    server: LiveServer, path: str, body: Json, status: int
) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code == status
    check(response.json(), content("post", path, status)["application/json"]["schema"])
    described = DOCUMENT["components"]["responses"][f"AnthropicErrorBody_{status}"]
    assert f"`{response.json()['error']['type']}`" in described["description"]
    assert {"request-id", "x-request-id"} <= set(described["headers"]) & set(response.headers)


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
    """Every error has its shape, and none is the server's own fault: only a hub is out of reach."""
    if response.status_code >= 400 and case.path != "/readyz":
        check(response.json(), error_schema(case.path))
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
