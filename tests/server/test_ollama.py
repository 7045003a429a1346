"""What tools that know Ollama look at first."""

from collections.abc import Callable
from pathlib import Path

import yaml

import nexa_runtime
from tests.support import LiveServer


def test_the_version_is_that_of_the_runtime(server: LiveServer) -> None:
    assert server.http.get("/api/version").json() == {"version": nexa_runtime.__version__}


def test_tags_are_the_models_that_are_served(server: LiveServer) -> None:
    (one,) = server.http.get("/api/tags").json()["models"]
    assert one["name"] == one["model"] == server.http.get("/v1/models").json()["data"][0]["id"] == "demo"
    assert one["size"] == server.loaded.model.path.stat().st_size
    assert (one["details"]["format"], one["details"]["family"]) == ("gguf", "llama")
    assert one["details"]["parameter_size"] == "3M"


def test_a_model_is_shown_by_its_name(server: LiveServer) -> None:
    shown = server.http.post("/api/show", json={"model": "demo"})
    assert shown.json() == server.http.post("/api/show", json={"name": "demo"}).json()
    assert shown.json()["capabilities"] == ["completion", "embedding"]
    assert shown.json()["model_info"]["llama.context_length"] == 4096
    assert "im_start" in shown.json()["template"]
    assert "x-nexa-ignored" not in shown.headers
    verbose = server.http.post("/api/show", json={"model": "demo", "verbose": True})
    assert verbose.headers["x-nexa-ignored"] == "verbose"


def test_what_is_not_there_or_not_named_is_said(server: LiveServer) -> None:
    answers = [server.http.post("/api/show", json=body) for body in ({}, {"model": 5}, {"model": "none"})]
    assert [(one.status_code, one.json()["error"]["param"]) for one in answers] == [
        (400, "model"),
        (400, "model"),
        (404, "model"),
    ]


def test_models_are_shown_to_those_who_may_use_them(
    make_server: Callable[..., LiveServer], tmp_path: Path
) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(yaml.safe_dump({"tenants": {"acme": {"NEXA_ALLOWED_MODELS": "other"}, "demo": {}}}))
    server = make_server(NEXA_TENANTS_FILE=str(file), NEXA_API_KEY="key")
    assert server.http.get("/api/version").status_code == 200
    assert server.http.get("/api/tags").status_code == 401
    assert server.http.post("/api/show", json={"model": "demo"}).status_code == 401
    headers = {"authorization": "Bearer key", "x-tenant-id": "acme"}
    assert server.http.get("/api/tags", headers=headers).json() == {"models": []}
    assert server.http.post("/api/show", json={"model": "demo"}, headers=headers).status_code == 403
    headers["x-tenant-id"] = "demo"
    assert len(server.http.get("/api/tags", headers=headers).json()["models"]) == 1
