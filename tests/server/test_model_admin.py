"""``/admin/models``: pulls by the owner of the box, loading and unloading; and that nobody else can pull."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from nexa_runtime.server.routes import admin
from nexa_runtime.store import hub as store_hub
from nexa_runtime.store.store import ModelStore
from nexa_runtime.tenancy.keys import create_key, digest
from tests.hub_models import DEMO, SHA256, SIZE, assert_tidy, demo_hub, names_in
from tests.hub_standin import HubStandin
from tests.support import EventStream, LiveServer, free_port, free_settings, wait_until

NEXA = Path(sys.executable).with_name("nexa-runtime")
NOBODY = "http://127.0.0.1:9"
MODEL = f"{DEMO}:Q4_K_M"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}

Event = dict[str, Any]


@pytest.fixture
def hub() -> Iterator[HubStandin]:
    with demo_hub() as standin:
        yield standin


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """What the server of a test has; empty."""
    return ModelStore(tmp_path / "store")


def settings_for(store: ModelStore, hub_url: str, **settings: object) -> dict[str, object]:
    return {
        "NEXA_MODEL_STORE": str(store.root),
        "NEXA_STATE_DIR": str(store.root.with_name("state")),
        "NEXA_CTX_SIZE": 2048,
        "HF_ENDPOINT": hub_url,
        "HF_HUB_OFFLINE": "0",
        **settings,
    }


@pytest.fixture
def server(store: ModelStore, hub: HubStandin) -> Iterator[LiveServer]:
    with LiveServer(free_settings(**settings_for(store, hub.url))) as live:
        yield live


@contextmanager
def pulling(server: LiveServer, **body: object) -> Iterator[Iterator[Any]]:
    """The events of a pull, as they come."""
    with server.http.stream("POST", "/admin/models/pull", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield EventStream(response).events()


def pulled(server: LiveServer, name: str) -> list[Any]:
    """All events of a pull."""
    with pulling(server, model=name) as events:
        return list(events)


def refused(server: LiveServer, name: str) -> tuple[int, str, str]:
    """Status, code and sentence of a pull that ends before any file comes."""
    response = server.http.post("/admin/models/pull", json={"model": name})
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def kinds(events: list[Any]) -> list[str]:
    """Of what is told whatever the speed."""
    return [event["kind"] for event in events[:-1] if event["kind"] != "progress"]


def names(server: LiveServer) -> list[str]:
    return [model["id"] for model in server.http.get("/v1/models").json()["data"]]


def answer(server: LiveServer, model: str) -> str:
    response = server.http.post("/v1/chat/completions", json={**QUESTION, "model": model})
    return str(response.json()["choices"][0]["message"]["content"])


def fetches(hub: HubStandin) -> int:
    """How often a file was asked for."""
    return sum(count for request, count in hub.requests.items() if "/resolve/" in request)


# A pull that ends well.


def test_a_pulled_model_is_served_without_a_restart(
    server: LiveServer, store: ModelStore, hub: HubStandin
) -> None:
    assert names(server) == ["demo"]
    *events, last = pulled(server, DEMO)
    assert last == "[DONE]"
    assert (events[0]["kind"], events[0]["total_bytes"]) == ("plan", SIZE)
    assert (events[-1]["kind"], events[-1]["text"]) == ("done", f"{MODEL}: pulled")
    came = [event["done_bytes"] for event in events if event["kind"] == "progress"]
    assert came == sorted(came)
    assert came[-1] == SIZE
    assert set(names(server)) == {"demo", MODEL, DEMO}
    assert answer(server, DEMO) == "The capital of France is Paris."
    models = server.http.get("/admin/models").json()["models"]
    assert [(one["name"], one["state"]) for one in models] == [("demo", "loaded"), (MODEL, "loaded")]
    assert_tidy(store)

    again = pulled(server, DEMO)
    assert kinds(again) == ["plan", "done"]
    assert again[-2]["text"] == f"{MODEL}: up to date"
    assert fetches(hub) == 1


def test_two_who_pull_the_same_share_one_transfer(
    server: LiveServer, store: ModelStore, hub: HubStandin
) -> None:
    hub.bytes_per_s = 10_000_000
    with ThreadPoolExecutor() as clients:
        both = list(clients.map(partial(pulled, server), (DEMO, MODEL)))
    assert [events[-1] for events in both] == ["[DONE]", "[DONE]"]
    assert sorted(len([kind for kind in kinds(events) if kind == "waiting"]) for events in both) == [0, 1]
    assert hub.bytes_sent[SHA256] == SIZE
    assert names_in(store.root / "records") == ["nexa%2Fdemo-gguf%3Aq4_k_m.json"]


def test_many_pulls_take_turns(server: LiveServer, store: ModelStore) -> None:
    quants = ("BF16", "IQ2_XS", "Q2_K", "Q3_K_L", "Q6_K", "Q8_0")
    with ThreadPoolExecutor() as clients:
        all_events = clients.map(lambda quant: pulled(server, f"nexa/many-GGUF:{quant}"), quants)
        assert {events[-1] for events in all_events} == {"[DONE]"}
    assert {record.quant for record in store.records()} == set(quants)


def test_a_pull_goes_on_when_its_client_leaves(
    server: LiveServer, store: ModelStore, hub: HubStandin, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.bytes_per_s = 10_000_000
    with pulling(server, model=DEMO) as events:
        next(event for event in events if event["kind"] == "progress")
    assert store.records() == []
    assert wait_until(lambda: DEMO in names(server))
    assert answer(server, DEMO) == "The capital of France is Paris."
    assert wait_until(lambda: "model_pulled" in capsys.readouterr().err)


# What is refused.


@pytest.mark.parametrize(
    ("name", "status", "code", "words"),
    [
        ("lama3", 404, "not_found_in_store", "did you mean llama3"),
        ("nexa/demo-GGUF:Q2_K", 404, "not_found_in_store", "Q8_0"),
        ("nexa/demo-GGUF@v9", 404, "not_found_in_store", "v9"),
        ("nexa/no-gguf", 404, "not_found_in_store", "no GGUF file"),
        ("nobody/nothing", 403, "hub_access_denied", "does not exist, or is private"),
        ("nexa/private-GGUF", 403, "hub_access_denied", "does not exist, or is private"),
        ("nexa/gated-GGUF", 403, "hub_access_denied", "is gated or private: ask for access"),
        ("/etc/passwd", 400, "usage", "nexa-runtime import"),
        ("./model.gguf", 400, "usage", "nexa-runtime import"),
        ("~nobody-here/model.gguf", 400, "usage", "home of nobody"),
        ("nexa/../demo-GGUF", 400, "usage", "does not name a model"),
        ("https://example.com/nexa/demo-GGUF", 400, "usage", "not at huggingface.co"),
        ("file:///etc/passwd", 400, "usage", "begin with https"),
        ("a" * 5000, 400, "usage", "at most 1000"),
        ("demo\n", 404, "not_found_in_store", "no model 'demo'"),
        ("demo\x1b[2J", 400, "usage", "printable"),
        ("  ", 400, "usage", "No model is named"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else str(value),
)
def test_what_cannot_be_pulled_has_a_status(
    shared: LiveServer, name: str, status: int, code: str, words: str
) -> None:
    found = refused(shared, name)
    assert found[:2] == (status, code)
    assert words in found[2]
    assert len(found[2]) < 500
    assert "\n" not in found[2]
    assert names(shared) == ["demo"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"[]", None, "must be a JSON object"),
        (b'"demo"', None, "must be a JSON object"),
        (b"\xff\xfe", None, "not valid JSON"),
        (b"{}", "model", "is required"),
        (b'{"model": ""}', "model", "must not be empty"),
        (b'{"model": null}', "model", "is required"),
        (b'{"model": 1}', "model", "must be a text"),
        (b'{"model": ["a/b"]}', "model", "must be a text"),
        (b'{"name": "nexa/demo-GGUF"}', "model", "is required"),
    ],
)
def test_a_body_that_names_no_model(shared: LiveServer, body: bytes, param: str | None, words: str) -> None:
    response = shared.http.post("/admin/models/pull", content=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", param)
    assert words in error["message"]


def test_fields_that_are_not_known_are_named(server: LiveServer) -> None:
    body = {"model": DEMO, "stream": True, "insecure": None}
    response = server.http.post("/admin/models/pull", json=body)
    assert (response.status_code, response.headers["x-nexa-ignored"]) == (200, "stream")


def test_a_disk_that_is_full_is_said_before_anything_comes(
    server: LiveServer, store: ModelStore, hub: HubStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelStore, "free_bytes", lambda _: 1_000_000)
    status, code, sentence = refused(server, DEMO)
    assert (status, code) == (507, "no_space")
    assert sentence == f"{store.root} has 0.00 GB free, and 0.01 GB are needed."
    assert not hub.bytes_sent
    assert not store.root.exists()


def test_a_hub_that_is_down_or_never_asked(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, hub: HubStandin
) -> None:
    monkeypatch.setattr(store_hub, "Hub", partial(store_hub.Hub, sleep=lambda _: None))
    with LiveServer(free_settings(**settings_for(store, NOBODY))) as down:
        status, code, sentence = refused(down, DEMO)
        assert (status, code) == (502, "hub_unavailable")
        assert sentence.startswith(f"The hub could not be asked for {DEMO}: it cannot be reached")
        assert answer(down, "demo") == "The capital of France is Paris."
    with LiveServer(free_settings(**settings_for(store, hub.url, HF_HUB_OFFLINE="1"))) as offline:
        sentence = "HF_HUB_OFFLINE is set, so the hub is not asked."
        assert refused(offline, DEMO) == (502, "hub_unavailable", sentence)
    assert not hub.requests
    assert not store.root.exists()


def test_a_stream_that_has_begun_ends_with_the_error(
    server: LiveServer, hub: HubStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A status is not withheld for ever: here not at all."""
    monkeypatch.setattr(admin, "WITHHOLD_S", 0)
    *events, last = pulled(server, "nexa/gated-GGUF")
    assert [event["kind"] for event in events] == ["plan"]
    assert (last["error"]["code"], last["error"]["type"]) == ("hub_access_denied", "permission_error")
    hub.order("status", where="/api/models/", status=429, retry_after="1")
    retry, *_, last = pulled(server, DEMO)
    assert (retry["kind"], last) == ("retry", "[DONE]")
    assert "status 429" in retry["text"]


def test_bytes_that_came_damaged_are_an_error_and_nothing_of_them_is_kept(
    server: LiveServer, store: ModelStore, hub: HubStandin
) -> None:
    hub.bytes_per_s = 30_000_000
    hub.order("flip", where="/resolve/", at=3_000_000, times=2)
    events = pulled(server, DEMO)
    assert [event["kind"] for event in events if event.get("kind") == "retry"] == ["retry"]
    assert events[-1]["error"]["code"] == "integrity"
    assert "came damaged twice" in events[-1]["error"]["message"]
    assert names(server) == ["demo"]
    assert_tidy(store)
    assert pulled(server, DEMO)[-1] == "[DONE]"
    assert answer(server, DEMO) == "The capital of France is Paris."


def test_a_bug_in_a_pull_is_an_end_too(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(store_hub.Hub, "plan", fail)
    status, code, sentence = refused(server, DEMO)
    assert (status, code) == (500, "store_error")
    assert "internal error" in sentence
    assert "secret" not in sentence
    assert "pull_crashed" in capsys.readouterr().err


# The end of the server.


@pytest.mark.parametrize("fault", ["slow", "stalled"])
def test_a_server_that_stops_ends_its_pulls(
    server: LiveServer, store: ModelStore, hub: HubStandin, fault: str
) -> None:
    if fault == "slow":
        hub.bytes_per_s = 3_000_000
    else:
        hub.order("stall", where="/resolve/", at=1_000_000)
    with pulling(server, model=DEMO) as events:
        next(event for event in events if event["kind"] == "progress")
        with ThreadPoolExecutor() as others:
            stopping = others.submit(server.stop)
            *_, last = events
            assert last["error"]["code"] == "server_shutting_down"
            stopping.result()
    assert store.records() == []
    assert names_in(store.root / "blobs") == []
    assert names_in(store.root / "partial")[0] == f"{SHA256}.partial"


def test_a_process_ends_while_its_pull_hangs_and_the_next_goes_on(
    server: LiveServer, store: ModelStore, hub: HubStandin
) -> None:
    port = free_port()
    settings = settings_for(store, hub.url, NEXA_PORT=port)
    env = os.environ | {name: str(value) for name, value in settings.items()}
    hub.order("stall", where="/resolve/", at=4_000_000)
    with subprocess.Popen([NEXA, "serve"], env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("Nexa Runtime serves" in line for line in process.stderr)
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
            with client, client.stream("POST", "/admin/models/pull", json={"model": DEMO}) as response:
                events = EventStream(response).events()
                assert wait_until(lambda: hub.bytes_sent[SHA256] == 4_000_000)
                process.send_signal(signal.SIGTERM)
                *_, last = events
                assert last["error"]["code"] == "server_shutting_down"
            # The hub hangs for 30 seconds, and the thread that waits for it with it.
            talk = process.communicate(timeout=20)[1]
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in talk
    assert names(server) == ["demo"]
    assert pulled(server, DEMO)[-1] == "[DONE]"
    assert hub.bytes_sent[SHA256] < 1.2 * SIZE
    assert answer(server, DEMO) == "The capital of France is Paris."


# Who may.

ADMIN_KEY, SERVICE_KEY, TENANT_KEY = "admin-key", "service-key", create_key("acme")


def test_only_the_admin_reaches_the_models(store: ModelStore, hub: HubStandin, tmp_path: Path) -> None:
    tenants = {"acme": {"NEXA_API_KEY_SHA256": digest(TENANT_KEY).hex()}}
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump({"tenants": tenants}))
    settings = {"NEXA_TENANTS_FILE": str(path), "NEXA_API_KEY": SERVICE_KEY, "NEXA_ADMIN_KEY": ADMIN_KEY}
    with LiveServer(free_settings(**settings_for(store, hub.url, **settings))) as server:

        def status(method: str, path: str, key: str | None) -> int:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            body = {"model": DEMO} if method == "POST" else None
            return server.http.request(method, path, json=body, headers=headers).status_code

        for call in [
            ("GET", "/admin/models"),
            ("POST", "/admin/models/pull"),
            ("POST", "/admin/models/demo/load"),
            ("POST", "/admin/models/demo/unload"),
        ]:
            # Whose a key is, is not looked up here: a tenant's is one that is not known.
            assert [status(*call, key) for key in (None, TENANT_KEY, SERVICE_KEY)] == [401, 401, 403]
        assert not hub.requests
        assert status("POST", "/v1/chat/completions", TENANT_KEY) == 400  # it got past the key
        assert status("GET", "/admin/models", ADMIN_KEY) == 200
        assert status("POST", "/admin/models/pull", ADMIN_KEY) == 200
        assert hub.bytes_sent[SHA256] == SIZE


@pytest.mark.parametrize(
    "name", [DEMO, MODEL, f"hf.co/{DEMO}", "llama3", "mistral:7b-instruct", "/etc/passwd"]
)
def test_nothing_is_pulled_because_a_client_named_it(
    shared: LiveServer, hub_of_shared: HubStandin, name: str
) -> None:
    before = hub_of_shared.requests.total()
    calls: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": QUESTION,
        "/v1/completions": {"prompt": "Hello"},
        "/v1/embeddings": {"input": "Hello"},
        f"/admin/models/{name}/load": {},
        f"/admin/models/{name}/unload": {},
    }
    for path, body in calls.items():
        response = shared.http.post(path, json={**body, "model": name})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert shared.http.get(f"/v1/models/{name}").status_code == 404
    assert hub_of_shared.requests.total() == before


# Loading and unloading by name.


def post(server: LiveServer, path: str) -> tuple[int, str]:
    """Status and code of a path that is sent as it stands; no client makes it nicer."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=30)
    try:
        connection.request("POST", path)
        response = connection.getresponse()
        error = json.loads(response.read()).get("error", {})
        return response.status, str(error.get("code", ""))
    finally:
        connection.close()


@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize(
    "name",
    [
        "none", "..", "../..", "%2e%2e", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "demo%2F", "demo%2F..",
        "a" * 5000, "%00", "%ff", "demo%20", "", "%F0%9F%A6%99", "pull", "*", "demo;x",
    ],
    ids=lambda name: name[:20],
)  # fmt: skip
def test_a_name_that_is_no_model_is_not_found(shared: LiveServer, name: str, verb: str) -> None:
    assert post(shared, f"/admin/models/{name}/{verb}") == (404, "model_not_found")
    models = shared.http.get("/admin/models").json()["models"]
    assert [(one["name"], one["state"]) for one in models] == [("demo", "loaded")]


def test_a_name_with_a_slash_is_a_name(server: LiveServer) -> None:
    pulled(server, DEMO)

    def state() -> str:
        found = server.http.get("/admin/models").json()["models"]
        return str(next(one["state"] for one in found if one["name"] == MODEL))

    assert state() == "stored"
    for name in (MODEL, MODEL.replace("/", "%2F"), DEMO, DEMO.upper()):
        assert post(server, f"/admin/models/{name}/load") == (200, "")
        assert state() == "loaded"
        assert post(server, f"/admin/models/{name}/unload") == (200, "")
        assert post(server, f"/admin/models/{name}/unload") == (200, "")
        assert state() == "stored"


# One server for what leaves it as it was.


@pytest.fixture(scope="module")
def hub_of_shared() -> Iterator[HubStandin]:
    with demo_hub() as standin:
        yield standin


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, hub_of_shared: HubStandin) -> Iterator[LiveServer]:
    store = ModelStore(tmp_path_factory.mktemp("shared") / "store")
    with LiveServer(free_settings(**settings_for(store, hub_of_shared.url))) as live:
        yield live
