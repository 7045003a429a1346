"""Several models on one server: loaded on demand, unloaded for each other, shared by all who wait."""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ConfigError
from nexa_runtime.llama import Model
from nexa_runtime.serving import pool
from nexa_runtime.serving.library import DEMO_PATH
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.store.importing import import_file
from nexa_runtime.store.store import ModelStore
from scripts.bench.make_model import Shape, write_model
from tests.support import LiveServer, copy_model, wait_until

Make = Callable[..., LiveServer]

_LOOPS = "{% for a in range(99999) %}" * 4
BOMB = _LOOPS + "x" + "{% endfor %}" * 4


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two chat models and one that embeds."""
    root, work = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("work")
    made = ModelStore(root)
    for name in ("one", "two"):
        import_file(copy_model(work / f"{name}.gguf", name=name), store=made, name=name)
    write_model(Shape("bert", 2, 64, 128, 4, 4, 64), DEMO_PATH, work / "vec.gguf")
    import_file(work / "vec.gguf", store=made, name="vec")
    return root


def settings_for(store: Path, tmp_path: Path, **settings: object) -> dict[str, object]:
    return {
        "NEXA_MODEL_STORE": str(store),
        "NEXA_STATE_DIR": str(tmp_path / "state"),
        "NEXA_CTX_SIZE": 2048,
        "NEXA_SLOTS": 4,
        **settings,
    }


def models(server: LiveServer) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in server.http.get("/admin/models").json()["models"]}


def loaded(server: LiveServer) -> set[str]:
    return {name for name, one in models(server).items() if one["state"] == "loaded"}


def budget_for_two(make_server: Make, store: Path, tmp_path: Path) -> int:
    """Bytes for the default model and any two of the others."""
    server = make_server(**settings_for(store, tmp_path))
    for name in ("one", "two", "vec"):
        assert server.http.post(f"/admin/models/{name}/load").status_code == 200
    sizes = [one["memory_bytes"] for name, one in models(server).items() if name != "demo"]
    demo = models(server)["demo"]["memory_bytes"]
    server.stop()
    return int(demo + sum(sorted(sizes)[-2:]) + 5_000_000)


def ask(server: LiveServer, model: str, **fields: object) -> httpx.Response:
    return server.chat("What is the capital of France?", model=model, temperature=0, **fields)


def embed(server: LiveServer, model: str) -> httpx.Response:
    return server.http.post("/v1/embeddings", json={"model": model, "input": "Hello"})


def test_models_of_the_store_are_loaded_when_they_are_asked_for(
    make_server: Make, store: Path, tmp_path: Path
) -> None:
    server = make_server(**settings_for(store, tmp_path))
    assert loaded(server) == {"demo"}
    listed = [model["id"] for model in server.http.get("/v1/models").json()["data"]]
    assert sorted(listed) == ["demo", "one", "two", "vec"]
    answers = {
        ask(server, name).json()["choices"][0]["message"]["content"] for name in ("demo", "one", "two")
    }
    assert answers == {"The capital of France is Paris."}
    assert embed(server, "vec").status_code == 200
    assert loaded(server) == {"demo", "one", "two", "vec"}
    wrong = ask(server, "vec")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "model_kind_mismatch")
    missing = ask(server, "three")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert wait_until(server.is_idle)


def test_all_models_run_at_once_on_one_engine(make_server: Make, store: Path, tmp_path: Path) -> None:
    server = make_server(**settings_for(store, tmp_path, NEXA_MAX_QUEUE=24))

    async def run() -> Counter[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            calls = [
                client.post(
                    "/v1/chat/completions",
                    json={
                        "model": ("demo", "one", "two")[index % 3],
                        "temperature": 0,
                        "messages": [{"role": "user", "content": "What is the capital of France?"}],
                    },
                )
                for index in range(24)
            ]
            responses = await asyncio.gather(*calls)
            return Counter(one.json()["choices"][0]["message"]["content"] for one in responses)

    answers = asyncio.run(run())
    # Batched beside others, two near-equal tokens may change places.
    assert answers["The capital of France is Paris."] >= 20
    assert wait_until(server.is_idle)


def test_the_least_recently_used_idle_model_goes(make_server: Make, store: Path, tmp_path: Path) -> None:
    budget = budget_for_two(make_server, store, tmp_path)
    server = make_server(**settings_for(store, tmp_path, NEXA_MEMORY_BUDGET=budget))
    assert ask(server, "one").status_code == 200
    assert ask(server, "two").status_code == 200
    assert loaded(server) == {"demo", "one", "two"}
    assert ask(server, "one").status_code == 200
    assert embed(server, "vec").status_code == 200
    assert loaded(server) >= {"demo", "one", "vec"}
    for _ in range(3):
        assert ask(server, "one").status_code == 200
        assert ask(server, "two").status_code == 200
        assert embed(server, "vec").status_code == 200
    body = server.http.get("/admin/models").json()
    assert body["used_bytes"] <= body["budget_bytes"] == budget


def test_twenty_who_wait_share_one_load(
    make_server: Make, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(**settings_for(store, tmp_path))
    capsys.readouterr()

    async def run() -> list[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            body = {"model": "one", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
            calls = [client.post("/v1/chat/completions", json=body) for _ in range(20)]
            return [response.status_code for response in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [200] * 20
    assert capsys.readouterr().err.count('"model_loaded"') == 1


def test_a_busy_model_is_not_unloaded(make_server: Make, store: Path, tmp_path: Path) -> None:
    server = make_server(**settings_for(store, tmp_path))
    with server.stream("Hello", model="one", ignore_eos=True, max_tokens=1500) as stream:
        events = stream.events()
        next(events)
        refused = server.http.post("/admin/models/one/unload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")
        next(events)
    assert wait_until(lambda: server.http.post("/admin/models/one/unload").status_code == 200)
    assert loaded(server) == {"demo"}


def test_a_busy_model_that_is_drained_ends_its_answer_first(
    make_server: Make, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model is wanted, and so is the busy one again: its answer is not cut for either of them."""
    monkeypatch.setattr(pool, "DRAIN_AFTER_S", 0.2)
    server = make_server(**settings_for(store, tmp_path))
    assert [ask(server, name).status_code for name in ("one", "two")] == [200, 200]
    sizes = {name: one["memory_bytes"] for name, one in models(server).items()}
    server.stop()
    budget = sizes["demo"] + int(1.5 * sizes["one"])
    server = make_server(**settings_for(store, tmp_path, NEXA_MEMORY_BUDGET=budget))
    server.http.timeout = 600
    with (
        ThreadPoolExecutor() as others,
        server.stream("Hello", model="one", ignore_eos=True, max_tokens=700) as stream,
    ):
        events = stream.events()
        next(events)
        asking = [others.submit(ask, server, "two", max_tokens=4)]
        assert wait_until(lambda: models(server)["two"]["state"] == "loading")
        assert wait_until(lambda: models(server)["one"]["state"] == "draining")
        asking.append(others.submit(ask, server, "one", max_tokens=4))
        *_, before_last, last = events
        assert last == "[DONE]"
        assert before_last["choices"][0]["finish_reason"] == "length"
        assert [one.result().status_code for one in asking] == [200, 200]
    assert wait_until(server.is_idle)


def test_a_server_stops_while_models_are_loaded(
    make_server: Make,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    has_begun = threading.Event()
    load = Model.load.__func__  # type: ignore[attr-defined]

    def slowly(cls: type[Model], *args: Any, **fields: Any) -> Model:
        has_begun.set()
        time.sleep(0.5)
        made: Model = load(cls, *args, **fields)
        return made

    server = make_server(**settings_for(store, tmp_path))
    monkeypatch.setattr(Model, "load", classmethod(slowly))
    with ThreadPoolExecutor() as clients:
        asking = [clients.submit(ask, server, name) for name in ("one", "two")]
        assert has_begun.wait(20)
        server.stop()
        for one in asking:
            with suppress(httpx.HTTPError):
                assert one.result().status_code == 503
    said = capsys.readouterr().err
    assert said.count('"model_loaded"') == 2  # the default, and the one that was under way
    assert said.count('"model_unloaded"') == 2
    assert "did_not_stop" not in said


def test_a_model_that_never_fits_is_refused_with_both_numbers(
    make_server: Make, store: Path, tmp_path: Path
) -> None:
    server = make_server(**settings_for(store, tmp_path))
    demo = models(server)["demo"]["memory_bytes"]
    server.stop()
    tight = make_server(**settings_for(store, tmp_path, NEXA_MEMORY_BUDGET=demo + 2**20))
    refused = ask(tight, "one")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_memory")
    assert "MiB" in refused.json()["error"]["message"]
    assert "-" not in refused.json()["error"]["message"]
    assert ask(tight, "demo").status_code == 200


def test_a_model_that_is_known_not_to_fit_drives_nobody_out(
    make_server: Make, store: Path, tmp_path: Path
) -> None:
    server = make_server(**settings_for(store, tmp_path))
    assert [ask(server, name).status_code for name in ("one", "two")] == [200, 200]
    sizes = {name: one["memory_bytes"] for name, one in models(server).items()}
    server.stop()
    with_context = {"models": [{"name": "two", "repo": "org/two", "context": 65536}]}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(with_context))
    settings = settings_for(store, tmp_path, NEXA_CATALOG_FILE=str(tmp_path / "models.yaml"))
    server = make_server(**settings, NEXA_MEMORY_BUDGET=sizes["demo"] + sizes["one"] + 5_000_000)
    assert ask(server, "two").json()["error"]["code"] == "model_memory"  # it was tried, which needs room
    assert ask(server, "one").status_code == 200
    assert ask(server, "two").json()["error"]["code"] == "model_memory"
    assert loaded(server) == {"demo", "one"}


def test_a_default_model_that_the_budget_does_not_hold_ends_the_start(store: Path, tmp_path: Path) -> None:
    for name in ("demo", "one"):
        settings = settings_for(store, tmp_path, NEXA_MODEL_ID=name, NEXA_MEMORY_BUDGET="1M")
        with pytest.raises(
            ConfigError, match=rf"NEXA_MEMORY_BUDGET is 1 MiB, and the default model {name} needs \d+ MiB\."
        ):
            open_pool(load_settings(settings))


def test_who_does_not_want_to_wait_is_told_so(make_server: Make, store: Path, tmp_path: Path) -> None:
    server = make_server(**settings_for(store, tmp_path))
    body = {"model": "one", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    refused = server.http.post("/v1/chat/completions", json=body, headers={"x-nexa-wait": "0"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
    assert "is being loaded, for 0.0 seconds so far." in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert wait_until(lambda: "one" in loaded(server))
    assert server.http.post("/admin/models/one/unload").status_code == 200
    refused = server.http.post("/v1/chat/completions", json=body, headers={"x-nexa-wait": "0"})
    assert "so far; last time it took" in refused.json()["error"]["message"]
    assert wait_until(lambda: "one" in loaded(server))
    answered = server.http.post("/v1/chat/completions", json=body, headers={"x-nexa-wait": "0"})
    assert answered.status_code == 200


def test_who_leaves_while_waiting_gives_the_place_back(
    make_server: Make, store: Path, tmp_path: Path
) -> None:
    server = make_server(**settings_for(store, tmp_path))

    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=0.05) as client:
            body = {"model": "two", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
            calls = [client.post("/v1/chat/completions", json=body) for _ in range(10)]
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(run())
    assert wait_until(server.is_idle)
    assert wait_until(lambda: models(server)["two"]["leases"] == 0)


def test_an_idle_model_is_unloaded_and_asking_about_it_does_not_wake_it(
    make_server: Make, store: Path, tmp_path: Path
) -> None:
    server = make_server(**settings_for(store, tmp_path, NEXA_KEEP_ALIVE_S=1))
    assert ask(server, "one").status_code == 200
    for path in ("/v1/models", "/v1/models/one", "/admin/models", "/readyz"):
        assert server.http.get(path).status_code == 200
    assert wait_until(lambda: loaded(server) == {"demo"})
    assert ask(server, "one").status_code == 200


def test_a_model_that_is_used_while_the_sweeper_waits_stays(
    make_server: Make, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(**settings_for(store, tmp_path))
    changing = server.app.dispatcher.pool._changing
    assert ask(server, "one").status_code == 200
    may_load = threading.Event()
    load = Model.load.__func__  # type: ignore[attr-defined]

    def held_up(cls: type[Model], *args: Any, **fields: Any) -> Model:
        may_load.wait(60)
        made: Model = load(cls, *args, **fields)
        return made

    monkeypatch.setattr(Model, "load", classmethod(held_up))
    with ThreadPoolExecutor() as clients:
        asking = clients.submit(ask, server, "two")
        assert wait_until(changing.locked)
        server.app.dispatcher.pool._entries["one"].last_used = -1e9  # long ago
        assert wait_until(lambda: bool(changing._waiters))
        assert ask(server, "one").status_code == 200
        may_load.set()
        assert asking.result().status_code == 200
    assert wait_until(lambda: not changing.locked() and not changing._waiters)
    assert loaded(server) == {"demo", "one", "two"}


def resident_bytes() -> int:
    """Memory of this process, the server's too."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_unloading_gives_the_memory_back(make_server: Make, store: Path, tmp_path: Path) -> None:
    server = make_server(**settings_for(store, tmp_path))
    after = []
    for _ in range(3):
        assert ask(server, "one").status_code == 200
        assert server.http.post("/admin/models/one/unload").status_code == 200
        after.append(resident_bytes())
    assert after[2] <= 1.1 * after[0]


def test_a_load_that_fails_is_remembered_for_a_while(make_server: Make, tmp_path: Path) -> None:
    root = tmp_path / "store"
    bad = copy_model(tmp_path / "bad.gguf", chat_template="{% for x in %}")
    import_file(bad, store=ModelStore(root), name="bad")
    server = make_server(**settings_for(root, tmp_path))
    for _ in range(2):
        refused = ask(server, "bad")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_load_failed")
        assert "template" in refused.json()["error"]["message"]
    assert models(server)["bad"]["state"] == "failed"
    assert ask(server, "demo").status_code == 200


def test_a_default_model_that_is_not_in_the_store(store: Path, tmp_path: Path) -> None:
    settings = load_settings(settings_for(store, tmp_path, NEXA_MODEL_ID="llama-3-8b-instruct"))
    opened = open_pool(settings)
    assert opened.default is None
    assert "nexa-runtime pull llama-3-8b-instruct" in opened.library.missing_reason()


def test_tenants_get_their_own_models(make_server: Make, store: Path, tmp_path: Path) -> None:
    tenants = {
        "first": {"NEXA_MODEL_ID": "one", "NEXA_ALLOWED_MODELS": "one"},
        "second": {"NEXA_MODEL_ID": "two", "NEXA_ALLOWED_MODELS": "two,vec"},
    }
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump({"tenants": tenants}))
    server = make_server(**settings_for(store, tmp_path, NEXA_TENANTS_FILE=str(path)))
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    for tenant, model in [("first", "one"), ("second", "two")]:
        headers = {"x-tenant-id": tenant}
        answered = server.http.post("/v1/chat/completions", json=body, headers=headers)
        assert (answered.status_code, answered.json()["model"]) == (200, model)
    for tenant, model in [("first", "two"), ("second", "one"), ("first", "demo")]:
        refused = server.http.post(
            "/v1/chat/completions", json={**body, "model": model}, headers={"x-tenant-id": tenant}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    listed = server.http.get("/v1/models", headers={"x-tenant-id": "second"}).json()["data"]
    assert sorted(model["id"] for model in listed) == ["two", "vec"]


def test_hostile_files_leave_the_server_up(make_server: Make, tmp_path: Path) -> None:
    """Whatever lies in the store under a record: the server says so and answers on."""
    root = tmp_path / "store"
    work = tmp_path / "work"
    work.mkdir()
    made = ModelStore(root)
    flipped = import_file(copy_model(work / "flipped.gguf", name="flipped"), store=made, name="flipped")
    import_file(copy_model(work / "bomb.gguf", chat_template=BOMB), store=made, name="bomb")
    blob = made.paths(flipped)[0]
    data = bytearray(blob.read_bytes())
    data[-1000] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    server = make_server(**settings_for(root, tmp_path))
    for name, words in [("flipped", "not those that were pulled"), ("bomb", " steps")]:
        refused = ask(server, name)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_load_failed")
        assert words in refused.json()["error"]["message"]
        assert ask(server, "demo").status_code == 200
