"""Tenants over HTTP: who is let in, what each may do, and that nothing of one reaches another."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.server.auth import check_exposure
from nexa_runtime.tenancy.keys import create_key, digest
from tests.support import LiveServer, wait_until

SERVICE_KEY, ADMIN_KEY = "service-key", "admin-key"
ACME_KEY, OTHER_KEY = create_key("acme"), create_key("other")

TENANTS: dict[str, dict[str, object]] = {
    "acme": {"NEXA_API_KEY_SHA256": digest(ACME_KEY).hex(), "NEXA_MAX_OUTPUT_TOKENS": "5"},
    "other": {"NEXA_API_KEY_SHA256": [digest(create_key("other")).hex(), digest(OTHER_KEY).hex()]},
    "small": {"NEXA_MAX_CONTEXT_TOKENS": 64, "NEXA_TEMPERATURE": 0},
    "picky": {"NEXA_ALLOWED_MODELS": "mistral"},
    "broken": {"NEXA_WEIGHT": "heavy"},
    "demo": {},
}

Make = Callable[..., LiveServer]


def write(path: Path, tenants: dict[str, dict[str, object]]) -> str:
    path.write_text(yaml.safe_dump({"tenants": tenants}))
    return str(path)


@pytest.fixture(scope="module")
def tenants_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("tenants") / "tenants.yaml", TENANTS)


@pytest.fixture(scope="module")
def live() -> Iterator[Callable[..., LiveServer]]:
    """Servers that the tests of this file share, one per set of settings."""
    started: dict[tuple[tuple[str, object], ...], LiveServer] = {}

    def make(**settings: object) -> LiveServer:
        key = tuple(sorted(settings.items()))
        if key not in started:
            from tests.support import free_settings

            started[key] = LiveServer(free_settings(**settings))
        return started[key]

    yield make
    for server in started.values():
        server.stop()


@pytest.fixture
def closed(live: Make, tenants_file: str) -> LiveServer:
    """Multi-tenant, with a service and an admin key."""
    return live(NEXA_TENANTS_FILE=tenants_file, NEXA_API_KEY=SERVICE_KEY, NEXA_ADMIN_KEY=ADMIN_KEY)


@pytest.fixture
def opened(live: Make, tenants_file: str) -> LiveServer:
    """Multi-tenant, without server keys."""
    return live(NEXA_TENANTS_FILE=tenants_file, NEXA_SERVED_NAMES="llama-3-8b-instruct")


def ask(server: LiveServer, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, **fields}
    return server.http.post("/v1/chat/completions", json=body, headers=headers or {})


def code_of(response: httpx.Response) -> tuple[int, str | None]:
    body = response.json()
    return response.status_code, body["error"]["code"] if "error" in body else None


def bearer(key: str, tenant: str | None = None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} | ({"x-tenant-id": tenant} if tenant else {})


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (401, "invalid_api_key")),
        ({"x-tenant-id": "acme"}, (401, "invalid_api_key")),
        ({"authorization": "Basic abc"}, (401, "invalid_api_key")),
        ({"authorization": "Bearer"}, (401, "invalid_api_key")),
        (bearer("none", "acme"), (401, "invalid_api_key")),
        ({"authorization": "Bearer ключ".encode()}, (401, "invalid_api_key")),
        (bearer(ACME_KEY), (200, None)),
        ({"x-api-key": ACME_KEY}, (200, None)),
        (bearer(ACME_KEY, "acme"), (200, None)),
        (bearer(ACME_KEY, "other"), (403, "tenant_mismatch")),
        (bearer(OTHER_KEY), (200, None)),
        (bearer(ACME_KEY[:-1] + ("A" if ACME_KEY[-1] != "A" else "B")), (401, "invalid_api_key")),
        (bearer(create_key("small")), (401, "invalid_api_key")),
        (bearer(create_key("nobody")), (401, "invalid_api_key")),
        (bearer(SERVICE_KEY, "small"), (200, None)),
        (bearer(SERVICE_KEY, "acme"), (200, None)),
        (bearer(SERVICE_KEY), (400, "invalid_tenant_id")),
        (bearer(SERVICE_KEY, "nobody"), (403, "tenant_unknown")),
        (bearer(SERVICE_KEY, "broken"), (503, "tenant_config_invalid")),
        (bearer(SERVICE_KEY, "picky"), (403, "model_not_allowed")),
        (bearer(SERVICE_KEY, "../admin"), (400, "invalid_tenant_id")),
        (bearer(SERVICE_KEY, "Acme"), (400, "invalid_tenant_id")),
        (bearer(SERVICE_KEY, "a" * 10_000), (400, "invalid_tenant_id")),
        (bearer(ADMIN_KEY, "acme"), (403, "access_denied")),
    ],
)
def test_what_each_key_opens(closed: LiveServer, headers: Any, expected: tuple[int, str | None]) -> None:
    assert code_of(ask(closed, headers)) == expected
    assert code_of(closed.http.post("/v1/embeddings", json={"input": "Hi"}, headers=headers)) == expected


def test_every_way_in_is_guarded_and_health_is_not(closed: LiveServer) -> None:
    for method, path in [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/demo"),
        ("GET", "/admin/tenants"),
        ("GET", "/admin/tenants/acme/config"),
        ("POST", "/admin/tenants/acme/refresh"),
    ]:
        assert closed.http.request(method, path).status_code == 401, path
    assert closed.http.get("/health").status_code == 200
    assert closed.http.get("/readyz").status_code == 200


def test_two_tenant_headers_are_refused(closed: LiveServer) -> None:
    headers = [("authorization", f"Bearer {SERVICE_KEY}"), ("x-tenant-id", "acme"), ("x-tenant-id", "other")]
    response = closed.http.post("/v1/embeddings", json={"input": "Hi"}, headers=headers)
    assert code_of(response) == (400, "invalid_tenant_id")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 401),
        (bearer(ADMIN_KEY), 200),
        ({"x-api-key": ADMIN_KEY}, 200),
        (bearer(SERVICE_KEY), 403),
        (bearer(ACME_KEY), 401),
    ],
)
def test_the_admin_key_alone_opens_admin(closed: LiveServer, headers: dict[str, str], expected: int) -> None:
    assert closed.http.get("/admin/tenants/acme/config", headers=headers).status_code == expected
    assert closed.http.get("/admin/tenants", headers=headers).status_code == expected
    assert closed.http.post("/admin/tenants/acme/refresh", headers=headers).status_code == expected


def test_an_open_server_takes_the_header_and_any_key(opened: LiveServer) -> None:
    assert ask(opened, {"x-tenant-id": "demo"}).status_code == 200
    assert ask(opened, bearer("none", "demo")).status_code == 200
    assert code_of(ask(opened)) == (400, "invalid_tenant_id")
    assert code_of(ask(opened, {"x-tenant-id": "acme"})) == (401, "invalid_api_key")
    assert ask(opened, bearer(ACME_KEY)).status_code == 200
    assert opened.http.get("/admin/tenants").status_code == 200


def test_the_default_tenant_is_whoever_names_none(live: Make, tenants_file: str) -> None:
    server = live(NEXA_TENANTS_FILE=tenants_file, DEFAULT_TENANT_ID="demo", NEXA_API_KEY=SERVICE_KEY)
    assert ask(server, bearer(SERVICE_KEY)).status_code == 200


def test_in_single_mode_the_header_means_nothing(server: LiveServer) -> None:
    for name in ("acme", "../x", "X" * 5000):
        assert ask(server, {"x-tenant-id": name}).status_code == 200
    tenants = server.http.get("/admin/tenants").json()["tenants"]
    assert [one["tenant_id"] for one in tenants] == ["demo"]


def test_single_mode_with_a_file_has_the_default_tenants_limits(live: Make, tenants_file: str) -> None:
    server = live(NEXA_TENANTS_FILE=tenants_file, TENANT_MODE="single", DEFAULT_TENANT_ID="small")
    config = server.http.get("/admin/tenants/small/config").json()
    assert (config["source"], config["limits"]["NEXA_MAX_CONTEXT_TOKENS"]) == ("file", 64)
    assert code_of(ask(server, {"x-tenant-id": "acme"}, messages=long_chat())) == (
        400,
        "context_length_exceeded",
    )


def test_a_trusted_network_needs_only_the_header(live: Make, tenants_file: str) -> None:
    trusting = {"NEXA_TENANTS_FILE": tenants_file, "NEXA_TRUST_TENANT_HEADER": "true"}
    near = live(**trusting, NEXA_TRUSTED_CIDRS="127.0.0.0/8", NEXA_ADMIN_KEY=ADMIN_KEY)
    assert ask(near, {"x-tenant-id": "acme"}).status_code == 200
    far = live(**trusting, NEXA_TRUSTED_CIDRS="10.0.0.0/8", NEXA_ADMIN_KEY=ADMIN_KEY)
    assert ask(far, {"x-tenant-id": "acme"}).status_code == 401
    # Whoever forwards for others does not become them.
    forged = {"x-tenant-id": "acme", "x-forwarded-for": "10.0.0.1"}
    assert ask(far, forged).status_code == 401


def test_addresses_off_the_list_are_refused(live: Make) -> None:
    denied = live(NEXA_IP_ALLOWLIST="10.0.0.0/8")
    assert code_of(ask(denied)) == (403, "address_denied")
    assert ask(denied, {"x-forwarded-for": "10.1.2.3"}).status_code == 403
    assert denied.http.get("/health").status_code == 200
    behind = live(NEXA_IP_ALLOWLIST="10.0.0.0/8", NEXA_FORWARDED_ALLOW_IPS="127.0.0.1")
    assert ask(behind, {"x-forwarded-for": "10.1.2.3"}).status_code == 200
    assert ask(behind, {"x-forwarded-for": "10.1.2.3, 8.8.8.8"}).status_code == 403
    assert ask(behind, {"x-forwarded-for": "8.8.8.8, 10.1.2.3"}).status_code == 200
    assert ask(behind, {"x-forwarded-for": "nonsense"}).status_code == 403
    assert ask(behind).status_code == 403


@pytest.mark.parametrize(
    ("host", "settings", "is_refused"),
    [
        ("127.0.0.1", {}, False),
        ("localhost", {}, False),
        ("::1", {}, False),
        ("0.0.0.0", {}, True),
        ("::", {}, True),
        ("192.0.2.1", {}, True),
        ("0.0.0.0", {"NEXA_API_KEY": "k"}, False),
        ("0.0.0.0", {"API_KEY": "k"}, False),
        ("0.0.0.0", {"NEXA_ADMIN_KEY_SHA256": "ab" * 32}, False),
        ("0.0.0.0", {"NEXA_TRUST_TENANT_HEADER": "true", "NEXA_TRUSTED_CIDRS": "10.0.0.0/8"}, False),
        ("0.0.0.0", {"NEXA_TRUST_TENANT_HEADER": "true"}, True),
        ("127.0.0.1", {"NEXA_TRUST_TENANT_HEADER": "true"}, True),
        ("0.0.0.0", {"NEXA_TRUSTED_CIDRS": "10.0.0.0/8"}, True),
    ],
)
def test_a_server_without_keys_listens_on_loopback_only(
    host: str, settings: dict[str, object], is_refused: bool
) -> None:
    access = load_settings(settings).access
    if is_refused:
        with pytest.raises(ConfigError, match="NEXA_TRUST"):
            check_exposure(host, access)
    else:
        check_exposure(host, access)


def long_chat() -> list[dict[str, str]]:
    return [{"role": "user", "content": "one two three four five " * 30}]


def test_what_is_above_a_cap_is_clamped_and_said(opened: LiveServer) -> None:
    headers = bearer(ACME_KEY)
    response = ask(opened, headers, max_tokens=1024, ignore_eos=True)
    assert response.headers["x-nexa-clamped"] == "max_tokens=5"
    assert response.json()["usage"]["completion_tokens"] == 5
    silent = ask(opened, headers, max_tokens=None, ignore_eos=True)
    assert "x-nexa-clamped" not in silent.headers
    assert silent.json()["usage"]["completion_tokens"] == 5


def test_a_prompt_above_the_tenants_context_is_400_with_the_numbers(opened: LiveServer) -> None:
    response = ask(opened, {"x-tenant-id": "small"}, messages=long_chat())
    assert code_of(response) == (400, "context_length_exceeded")
    message = response.json()["error"]["message"]
    assert "maximum context length is 64 tokens, of which a prompt may take 63" in message
    texts = opened.http.post(
        "/v1/embeddings", json={"input": ["Hi", "one two " * 200]}, headers={"x-tenant-id": "small"}
    )
    assert code_of(texts) == (400, "context_length_exceeded")


def test_the_models_that_a_tenant_sees_are_those_it_may_use(opened: LiveServer) -> None:
    for name, ids in [("demo", ["demo", "llama-3-8b-instruct"]), ("picky", [])]:
        models = opened.http.get("/v1/models", headers={"x-tenant-id": name}).json()["data"]
        assert [model["id"] for model in models] == ids
    one = opened.http.get("/v1/models/demo", headers={"x-tenant-id": "picky"})
    assert code_of(one) == (403, "model_not_allowed")


def test_a_tenants_limits_reload_while_it_is_served(make_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    server = make_server(NEXA_TENANTS_FILE=write(path, {"acme": {"TENANT_HARD_LIMIT_RPM": "100"}}))
    headers = {"x-tenant-id": "acme"}
    assert ask(server, headers).headers["x-ratelimit-limit-requests"] == "100"
    write(path, {"acme": {"TENANT_HARD_LIMIT_RPM": "1", "NEXA_WEIGHT": "2.5"}, "late": {}})
    refreshed = server.http.post("/admin/tenants/acme/refresh").json()
    assert (refreshed["limits"]["TENANT_HARD_LIMIT_RPM"], refreshed["limits"]["NEXA_WEIGHT"]) == (1, 2.5)
    refused = ask(server, headers)
    assert code_of(refused) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert int(refused.headers["retry-after-ms"]) <= 60_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert ask(server, {"x-tenant-id": "late"}).status_code == 200
    path.write_text("tenants: [")
    assert server.http.post("/admin/tenants/acme/refresh").json()["limits"]["NEXA_WEIGHT"] == 2.5


def test_rate_headers_are_on_every_answer_before_the_first_byte(make_server: Any, tmp_path: Path) -> None:
    limits: dict[str, object] = {"TENANT_HARD_LIMIT_RPM": "10", "TENANT_HARD_LIMIT_TPM": "100000"}
    server = make_server(NEXA_TENANTS_FILE=write(tmp_path / "t.yaml", {"acme": limits}))
    headers = {"x-tenant-id": "acme"}
    whole = ask(server, headers)
    assert whole.headers["x-ratelimit-remaining-requests"] == "9"
    assert whole.headers["x-ratelimit-reset-requests"] in ("1m0s", "60s", "59s")
    used = whole.json()["usage"]["total_tokens"]
    assert whole.headers["x-ratelimit-remaining-tokens"] == str(100_000 - used)
    with server.http.stream(
        "POST",
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 3},
        headers=headers,
    ) as stream:
        assert stream.headers["x-ratelimit-remaining-requests"] == "8"
        assert int(stream.headers["x-ratelimit-remaining-tokens"]) < 100_000
    bad = server.http.post("/v1/chat/completions", json={"messages": 3}, headers=headers)
    assert (bad.status_code, bad.headers["x-ratelimit-limit-requests"]) == (400, "10")


def test_tokens_a_minute_settle_to_what_was_used(make_server: Any, tmp_path: Path) -> None:
    limits: dict[str, object] = {"TENANT_HARD_LIMIT_TPM": "400", "NEXA_MAX_OUTPUT_TOKENS": "300"}
    server = make_server(NEXA_TENANTS_FILE=write(tmp_path / "t.yaml", {"acme": limits}))
    headers = {"x-tenant-id": "acme"}
    total = 0
    while total + 320 <= 400:
        response = ask(server, headers, max_tokens=300, temperature=0)
        assert response.status_code == 200
        total += response.json()["usage"]["total_tokens"]
    refused = ask(server, headers, max_tokens=390)
    assert code_of(refused) == (429, "tokens_exceeded")
    assert f"{400 - total} are left" in refused.json()["error"]["message"]
    assert ask(server, headers, max_tokens=10).status_code == 200
    assert wait_until(server.is_idle)


def test_exactly_the_limit_of_five_hundred_at_once_passes(make_server: Any, tmp_path: Path) -> None:
    limits: dict[str, object] = {"TENANT_HARD_LIMIT_RPM": "120", "NEXA_MAX_QUEUE": "1000"}
    server = make_server(NEXA_TENANTS_FILE=write(tmp_path / "t.yaml", {"acme": limits}), NEXA_MAX_QUEUE=1000)

    async def run() -> Counter[int]:
        limit = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limit) as client:
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            calls = [
                client.post("/v1/chat/completions", json=body, headers={"x-tenant-id": "acme"})
                for _ in range(500)
            ]
            return Counter(response.status_code for response in await asyncio.gather(*calls))

    assert asyncio.run(run()) == {200: 120, 429: 380}
    assert wait_until(server.is_idle)
    assert server.has_clean_books()


def test_a_full_queue_is_the_tenants_own_and_costs_no_request(make_server: Any, tmp_path: Path) -> None:
    acme: dict[str, object] = {
        "TENANT_HARD_LIMIT_RPM": "10",
        "NEXA_MAX_CONCURRENCY": "1",
        "NEXA_MAX_QUEUE": "0",
    }
    server = make_server(NEXA_TENANTS_FILE=write(tmp_path / "t.yaml", {"acme": acme, "other": {}}))
    with server.http.stream(
        "POST",
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "max_tokens": 2000,
            "ignore_eos": True,
        },
        headers={"x-tenant-id": "acme"},
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        for _ in range(5):
            refused = ask(server, {"x-tenant-id": "acme"})
            assert code_of(refused) == (429, "queue_full")
            assert refused.headers["x-ratelimit-remaining-requests"] == "9"
        assert ask(server, {"x-tenant-id": "other"}).status_code == 200
    assert wait_until(server.is_idle)


def test_who_waits_too_long_for_a_slot_is_told(make_server: Any, tmp_path: Path) -> None:
    hasty: dict[str, object] = {"NEXA_QUEUE_TIMEOUT_S": "0.2", "NEXA_GUARANTEED_SLOTS": "0"}
    path = write(tmp_path / "t.yaml", {"slow": {"NEXA_WEIGHT": "100"}, "hasty": hasty})
    server = make_server(NEXA_TENANTS_FILE=path, NEXA_SLOTS=1)
    with server.http.stream(
        "POST",
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "max_tokens": 3000,
            "ignore_eos": True,
        },
        headers={"x-tenant-id": "slow"},
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        refused = ask(server, {"x-tenant-id": "hasty"})
        assert code_of(refused) == (503, "queue_timeout")
        assert refused.headers["retry-after"] == "1"
    assert wait_until(server.is_idle)


def test_the_openai_client_waits_as_it_is_told_and_sees_no_error(make_server: Any, tmp_path: Path) -> None:
    limits: dict[str, object] = {"NEXA_MAX_CONCURRENCY": "1", "NEXA_MAX_QUEUE": "1"}
    server = make_server(NEXA_TENANTS_FILE=write(tmp_path / "t.yaml", {"acme": limits}))

    async def one(client: Any) -> str:
        completion = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "What is 12 + 30?"}], temperature=0
        )
        return str(completion.choices[0].message.content)

    async def run() -> list[str]:
        client: Any
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1",
            api_key="none",
            max_retries=20,
            default_headers={"X-Tenant-Id": "acme"},
        ) as client:
            return await asyncio.gather(*(one(client) for _ in range(6)))

    assert all("12 + 30 = 42." in answer for answer in asyncio.run(run()))
    usage = server.http.get("/admin/tenants").json()["tenants"][0]["usage"]
    assert usage["requests"] == 6
    assert usage["refused"] > 0


def test_no_tenant_gets_a_cached_token_of_another(opened: LiveServer) -> None:
    prompt = [{"role": "user", "content": "A secret that is long enough to be worth sharing. " * 20}]

    def cached(name: str) -> int:
        usage = ask(opened, {"x-tenant-id": name}, messages=prompt, max_tokens=1).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    before = [cached("demo") for _ in range(2)]
    assert before[0] < 20
    assert before[1] > 200
    # "other" has keys; a key of its own is what lets it in.
    response = ask(opened, bearer(OTHER_KEY), messages=prompt, max_tokens=1)
    assert response.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert cached("demo") > 200


def test_ids_that_are_used_again_bring_nothing_along(make_server: Any, tmp_path: Path) -> None:
    names = [f"t{index}" for index in range(12)]
    path = write(tmp_path / "t.yaml", {name: {} for name in names})
    server = make_server(NEXA_TENANTS_FILE=path, NEXA_SLOTS=2, NEXA_CTX_SIZE=600)
    prompt = [{"role": "user", "content": "The same long words for everyone. " * 12}]
    for name in names * 2:
        first, again = (
            ask(server, {"x-tenant-id": name}, messages=prompt, max_tokens=1, seed=1).json()["usage"]
            for _ in range(2)
        )
        # What this tenant said the last time may be there still; the others' never is.
        assert first["prompt_tokens_details"]["cached_tokens"] in (0, first["prompt_tokens"] - 1)
        assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1
        if name == names[0] and server.engine.stats.num_evictions == 0:
            assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert server.engine.stats.num_evictions > 0
    assert server.has_clean_books()


def test_public_prefixes_are_computed_once_for_all(make_server: Any, tmp_path: Path) -> None:
    system = "You are the assistant of a large shop that sells many things. " * 8
    prefixes = tmp_path / "prefixes.yaml"
    prefixes.write_text(yaml.safe_dump({"prefixes": [{"system": system}]}))
    tenants = write(tmp_path / "t.yaml", {"acme": {}, "other": {}})
    server = make_server(NEXA_TENANTS_FILE=tenants, NEXA_PUBLIC_PREFIXES_FILE=str(prefixes))
    assert wait_until(lambda: server.http.get("/readyz").status_code == 200)
    private = "My own secret words, and many of them. " * 6
    for name in ("acme", "other"):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": private}]
        usage = ask(server, {"x-tenant-id": name}, messages=messages, max_tokens=1).json()["usage"]
        details = usage["prompt_tokens_details"]["cached_tokens"]
        assert 80 < details < usage["prompt_tokens"] - 40
    tenants_seen = server.http.get("/admin/tenants").json()["tenants"]
    assert [one["tenant_id"] for one in tenants_seen] == ["acme", "other"]


def test_admin_shows_limits_in_force_without_secrets(opened: LiveServer) -> None:
    config = opened.http.get("/admin/tenants/acme/config").json()
    assert config["tenant_id"] == "acme"
    assert (config["source"], config["problems"]) == ("file", [])
    limits = config["limits"]
    assert limits["NEXA_MAX_OUTPUT_TOKENS"] == 5
    assert limits["NEXA_MAX_CONTEXT_TOKENS"] == 4096
    assert limits["NEXA_MAX_CONCURRENCY"] == 8
    assert digest(ACME_KEY).hex() not in str(config)
    assert code_of(opened.http.get("/admin/tenants/nobody/config")) == (404, "tenant_unknown")
    assert code_of(opened.http.get("/admin/tenants/broken/config")) == (503, "tenant_config_invalid")
    assert code_of(opened.http.get("/admin/tenants/Not%20an%20id/config")) == (400, "invalid_tenant_id")


def test_admin_counts_what_tenants_use(make_server: Any, tmp_path: Path) -> None:
    server = make_server(NEXA_TENANTS_FILE=write(tmp_path / "t.yaml", {"acme": {}, "other": {}}))
    usage = ask(server, {"x-tenant-id": "acme"}).json()["usage"]
    assert wait_until(server.is_idle)
    (one,) = server.http.get("/admin/tenants").json()["tenants"]
    assert one["tenant_id"] == "acme"
    assert one["usage"]["prompt_tokens"] == usage["prompt_tokens"]
    assert one["usage"]["completion_tokens"] == usage["completion_tokens"]
    assert wait_until(lambda: server.http.get("/admin/tenants").json()["tenants"][0]["resident_cells"] > 0)


def test_prompts_are_logged_only_where_the_tenant_says_so(
    make_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tenants: dict[str, dict[str, object]] = {"loud": {"NEXA_LOG_PROMPTS": "true"}, "quiet": {}}
    server = make_server(NEXA_TENANTS_FILE=write(tmp_path / "t.yaml", tenants))
    for name in tenants:
        ask(server, {"x-tenant-id": name}, messages=[{"role": "user", "content": f"words of {name}"}])
    written = capsys.readouterr().err
    assert "words of loud" in written
    assert "words of quiet" not in written


def test_trust_without_keys_opens_nothing_to_others(live: Make, tenants_file: str) -> None:
    far = live(
        NEXA_TENANTS_FILE=tenants_file, NEXA_TRUST_TENANT_HEADER="true", NEXA_TRUSTED_CIDRS="10.0.0.0/8"
    )
    assert code_of(ask(far, {"x-tenant-id": "demo"})) == (401, "invalid_api_key")
    assert ask(far, bearer(ACME_KEY)).status_code == 200
    for headers in ({}, bearer(ACME_KEY), {"x-api-key": "any"}):
        assert far.http.get("/admin/tenants", headers=headers).status_code == 401


def test_an_open_server_answers_to_loopback_names_only(opened: LiveServer) -> None:
    for host, status in [("localhost", 200), ("127.0.0.1:1", 200), ("[::1]", 200), ("evil.example", 403)]:
        headers = {"x-tenant-id": "demo", "host": host}
        assert opened.http.get("/v1/models", headers=headers).status_code == status
        assert opened.http.get("/admin/tenants", headers=headers).status_code == status


def test_single_mode_takes_the_default_tenants_key(live: Make, tenants_file: str) -> None:
    server = live(NEXA_TENANTS_FILE=tenants_file, TENANT_MODE="single", DEFAULT_TENANT_ID="acme")
    assert ask(server, bearer(ACME_KEY)).status_code == 200
    assert ask(server).status_code == 401
    assert server.http.get("/admin/tenants/other/config").status_code == 404


def test_what_never_ran_costs_nothing(make_server: Any, tmp_path: Path) -> None:
    hasty: dict[str, object] = {
        "NEXA_QUEUE_TIMEOUT_S": "0.2",
        "NEXA_GUARANTEED_SLOTS": "0",
        "TENANT_HARD_LIMIT_TPM": "5000",
    }
    path = write(tmp_path / "t.yaml", {"slow": {"NEXA_WEIGHT": "100"}, "hasty": hasty})
    server = make_server(NEXA_TENANTS_FILE=path, NEXA_SLOTS=1)
    body = {"messages": long_chat(), "stream": True, "max_tokens": 3000, "ignore_eos": True}
    with server.http.stream(
        "POST", "/v1/chat/completions", json=body, headers={"x-tenant-id": "slow"}
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        refused = ask(server, {"x-tenant-id": "hasty"}, messages=long_chat())
        assert code_of(refused) == (503, "queue_timeout")
        assert refused.headers["x-ratelimit-remaining-tokens"] == "5000"
    assert wait_until(server.is_idle)
    usage = {one["tenant_id"]: one["usage"] for one in server.http.get("/admin/tenants").json()["tenants"]}
    assert usage["hasty"]["prompt_tokens"] == 0
    # Whoever left pays for what was computed, and for nothing that was not.
    assert usage["slow"]["prompt_tokens"] > 100
    assert 0 < usage["slow"]["completion_tokens"] < 3000


def test_a_tenant_that_is_made_anew_inherits_nothing(make_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    server = make_server(NEXA_TENANTS_FILE=write(path, {"acme": {}, "other": {}}))
    prompt = long_chat()

    def cached() -> int:
        usage = ask(server, {"x-tenant-id": "acme"}, messages=prompt, max_tokens=1).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    cached()
    assert cached() > 100
    write(path, {"other": {}})
    assert server.http.post("/admin/tenants/acme/refresh").status_code == 404
    write(path, {"acme": {}, "other": {}})
    assert server.http.post("/admin/tenants/acme/refresh").status_code == 200
    assert cached() == 0


def test_limits_change_while_a_tenant_only_waits_for_its_answer(
    make_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.yaml"
    server = make_server(NEXA_TENANTS_FILE=write(path, {"acme": {}}))
    body = {"messages": long_chat(), "stream": True, "max_tokens": 3500, "ignore_eos": True}
    weights: list[float] = []
    monkeypatch.setattr(server.engine, "update_share", lambda share: weights.append(share.weight))
    with server.http.stream(
        "POST", "/v1/chat/completions", json=body, headers={"x-tenant-id": "acme"}
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        write(path, {"acme": {"NEXA_WEIGHT": "7"}})
        assert wait_until(lambda: 7.0 in weights)
