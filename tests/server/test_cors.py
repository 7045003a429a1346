"""Web pages of other origins: none by default, those that are named, and all only where there are keys."""

from typing import Any

import pytest

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.server.auth import check_origins
from tests.support import LiveServer

PAGE = "https://chat.example"
ASKS_FIRST = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-tenant-id",
}


def test_no_page_may_ask_by_default(server: LiveServer) -> None:
    answer = server.http.options("/v1/chat/completions", headers=ASKS_FIRST)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-origin" not in server.http.get("/health", headers={"Origin": PAGE}).headers


def test_a_page_of_a_named_origin_may(make_server: Any) -> None:
    server = make_server(NEXA_CORS_ORIGINS=f"http://localhost:3000, {PAGE}")
    preflight = server.http.options("/v1/chat/completions", headers=ASKS_FIRST)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    answer = server.http.get("/v1/models", headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-expose-headers"] == "*"
    assert answer.headers["x-request-id"]
    refused = server.http.get("/v1/nothing", headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (404, PAGE)
    other = server.http.get("/v1/models", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    # A page that reaches an open server under a name of its own is refused as before.
    renamed = server.http.get("/v1/models", headers={"Origin": PAGE, "Host": "chat.example"})
    assert (renamed.status_code, renamed.json()["error"]["code"]) == (403, "address_denied")


def test_all_pages_may_ask_a_server_with_keys_only(make_server: Any) -> None:
    keys = {"NEXA_API_KEY": "service", "NEXA_ADMIN_KEY": "admin"}
    server = make_server(NEXA_CORS_ORIGINS="*", **keys)
    assert server.http.get("/health", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == "*"
    check_origins(("*",), load_settings(keys).access)
    with pytest.raises(ConfigError, match="NEXA_CORS_ORIGINS is \\*, and this server has no keys"):
        check_origins(("*",), load_settings().access)


@pytest.mark.parametrize("origins", ["chat.example", "https://chat.example/", "https://*.example", "null"])
def test_what_is_no_origin_is_one_sentence(origins: str) -> None:
    with pytest.raises(ConfigError, match="NEXA_CORS_ORIGINS"):
        load_settings({"NEXA_CORS_ORIGINS": origins})
