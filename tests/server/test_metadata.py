"""``/v1/metadata``: what a gateway reads of this server."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from nexa_runtime import __version__
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.endpoints import ENDPOINTS, Access
from nexa_runtime.serving.library import DEMO_PATH
from scripts.bench.make_model import Shape, write_model
from tests.support import LiveServer

Make = Callable[..., LiveServer]
KEYS = {"NEXA_API_KEY": "sk-service", "NEXA_ADMIN_KEY": "sk-admin"}


def test_it_says_what_nexus_wants(server: LiveServer) -> None:
    body = server.http.get("/v1/metadata").json()
    assert (body["schema_version"], body["name"], body["version"]) == ("v1", "nexa-runtime", __version__)
    assert body["service"]["name"] == body["name"]
    assert body["domains"] == body["capabilities"]["domains"] == ["llm", "embeddings"]
    assert body["capabilities"]["max_concurrency"] == body["limits"]["slots"] == 8
    assert body["capabilities"]["tools"] is True
    assert body["capabilities"]["rerank"] is False
    assert body["limits"]["max_body_bytes"] == 4 * 1024 * 1024
    assert body["limits"]["max_context_tokens"] == server.loaded.max_sequence_tokens
    assert body["limits"]["kv_cells"] == server.loaded.num_cells
    assert re.fullmatch(r"[0-9]+Mi", body["resources"]["memory"])
    assert body["resources"]["memory_used_bytes"] <= body["resources"]["memory_budget_bytes"]
    (model,) = [one for one in body["models"] if one["is_default"]]
    assert (model["id"], model["is_loaded"]) == ("demo", True)


def test_every_endpoint_is_there_with_schemas_that_are_carried(server: LiveServer) -> None:
    response = server.http.get("/v1/metadata")
    assert len(response.content) < 200_000
    body = response.json()
    shown = {(one["method"], one["path"]): one for one in body["endpoints"]}
    callable_ones = [one for one in ENDPOINTS if one.access in (Access.TENANT, Access.PUBLIC)]
    assert set(shown) == {(one.method, one.path) for one in callable_ones}
    for one in callable_ones:
        about = shown[one.method, one.path]
        assert ("request_schema" in about) == (one.request is not None)
        has_json = one.answer is not None and one.answer_type == "application/json"
        assert ("response_schema" in about) == has_json
        assert ("event_schema" in about) == (one.event is not None)
        assert about["access"] == one.access.value
    chat = shown["POST", "/v1/chat/completions"]
    assert chat["request_schema"] == "#/components/schemas/ChatRequest"
    for name in re.findall(r'"#/components/schemas/(\w+)"', response.text):
        assert name in body["components"]["schemas"]
    schema = {"$ref": chat["request_schema"], "components": body["components"]}
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    assert not list(Draft202012Validator(schema).iter_errors(asked))
    assert list(Draft202012Validator(schema).iter_errors({**asked, "temperature": 3}))


def test_options_have_the_ranges_that_a_chat_is_held_to(server: LiveServer) -> None:
    body = server.http.get("/v1/metadata").json()
    options = {one["key"]: one for one in body["ui"]["options"]}
    assert {"model", "temperature", "top_p", "top_k", "max_tokens", "seed"} <= set(options)
    assert set(options) <= set(ChatRequest.model_fields)
    assert options["temperature"] == {
        "key": "temperature", "label": "Temperature", "type": "number", "min": 0, "max": 2,
        "default": server.loaded.sampling.temperature,
    }  # fmt: skip
    assert options["top_k"]["type"] == "integer"
    assert options["reasoning_effort"]["type"] == "enum"
    assert options["max_tokens"]["max"] == server.loaded.max_sequence_tokens
    assert "demo" in options["model"]["values"]
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    for one in options.values():
        if "min" in one and one["key"] != "max_tokens":
            for value in (one["min"], one["max"]):
                ChatRequest.model_validate({**asked, one["key"]: value})
            for value in (one["min"] - 1, one["max"] + 1):
                with pytest.raises(ValidationError):
                    ChatRequest.model_validate({**asked, one["key"]: value})


def test_a_server_with_keys_tells_everyone_its_default_model_only(make_server: Make, tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text("tenants: {acme: {NEXA_ALLOWED_MODELS: demo}}")
    server = make_server(**KEYS, NEXA_TENANTS_FILE=str(tenants), NEXA_SERVICE_NAME="nexa-a")
    response = server.http.get("/v1/metadata")
    assert response.status_code == 200
    body = response.json()
    assert body["name"] == "nexa-a"
    assert [model["id"] for model in body["models"]] == ["demo"]
    assert "acme" not in response.text
    assert str(tmp_path) not in response.text
    assert all(key not in response.text for key in KEYS.values())


def test_only_loopback_names_read_it_of_an_open_server(server: LiveServer) -> None:
    response = server.http.get("/v1/metadata", headers={"Host": "evil.example"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "address_denied")


def test_a_server_that_only_embeds_is_none_for_chats(make_server: Make, tmp_path: Path) -> None:
    path = tmp_path / "encoder.gguf"
    write_model(Shape("bert", 2, 64, 128, 4, 4, 64), DEMO_PATH, path)
    server = make_server(NEXA_MODEL_ID=str(path))
    body = server.http.get("/v1/metadata").json()
    assert body["domains"] == ["embeddings"]
    assert (body["capabilities"]["chat"], body["capabilities"]["embeddings"]) == (False, True)
    assert body["limits"]["max_input_tokens"] > 0
