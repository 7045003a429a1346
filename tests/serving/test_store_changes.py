"""A server whose store changes under it: models that arrive, go, are replaced, damaged and repaired."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from nexa_runtime.config import load_settings
from nexa_runtime.errors import ModelFileError
from nexa_runtime.llama import Model
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.store.importing import import_file
from nexa_runtime.store.store import ModelRecord, ModelStore
from tests.support import LiveServer, copy_model, wait_until

Make = Callable[..., LiveServer]

NEXA = Path(sys.executable).with_name("nexa-runtime")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def settings_for(store: ModelStore, **settings: object) -> dict[str, object]:
    return {
        "NEXA_MODEL_STORE": str(store.root),
        "NEXA_STATE_DIR": str(store.root.with_name("state")),
        "NEXA_CTX_SIZE": 1024,
        "NEXA_SLOTS": 2,
        **settings,
    }


def bring(store: ModelStore, folder: Path, name: str, content: str = "a") -> ModelRecord:
    """Put a model into the store, in the place of another of that name; ``content`` makes it another."""
    path = copy_model(folder / f"{name}-{content}.gguf", name=content)
    return import_file(path, store=store, name=name, is_forced=True)


def take(store: ModelStore, name: str) -> None:
    """As ``rm --force``."""
    store.remove(store.plan_removal(name))


def damage(store: ModelStore, record: ModelRecord) -> None:
    blob = store.paths(record)[0]
    data = bytearray(blob.read_bytes())
    data[-1000] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)


def models(http: httpx.Client) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in http.get("/admin/models").json()["models"]}


def used_bytes(http: httpx.Client) -> int:
    return int(http.get("/admin/models").json()["used_bytes"])


def is_ready(http: httpx.Client) -> bool:
    return http.get("/readyz").status_code == 200


def codes(http: httpx.Client) -> list[str]:
    return [reason["code"] for reason in http.get("/readyz").json()["reasons"]]


def ask(server: LiveServer, **fields: object) -> httpx.Response:
    return server.chat("What is the capital of France?", temperature=0, **fields)


def test_a_default_that_goes_and_comes_back_is_loaded_without_being_asked_for(
    make_server: Make, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(store, tmp_path, "one")
    server = make_server(**settings_for(store, NEXA_MODEL_ID="one"))
    assert is_ready(server.http)
    take(store, "one")
    assert wait_until(lambda: used_bytes(server.http) == 0)
    unready = server.http.get("/readyz")
    assert unready.status_code == 503
    assert "nexa-runtime pull one" in unready.json()["reason"]
    assert codes(server.http) == ["model_unavailable"]
    may_load = threading.Event()
    load = Model.load.__func__  # type: ignore[attr-defined]

    def held_up(cls: type[Model], *args: Any, **fields: Any) -> Model:
        may_load.wait(60)
        made: Model = load(cls, *args, **fields)
        return made

    monkeypatch.setattr(Model, "load", classmethod(held_up))
    bring(store, tmp_path, "one")
    assert wait_until(lambda: models(server.http)["one"]["state"] == "loading")
    assert codes(server.http) == ["model_loading"]
    assert server.http.get("/health").json() == {"status": "ok"}
    may_load.set()
    assert wait_until(lambda: is_ready(server.http))


def test_a_busy_model_that_was_removed_is_shown_until_it_is_idle(
    make_server: Make, store: ModelStore, tmp_path: Path
) -> None:
    bring(store, tmp_path, "one")
    server = make_server(**settings_for(store))
    demo_bytes = used_bytes(server.http)
    with server.stream("Hello", model="one", ignore_eos=True, max_tokens=300) as stream:
        events = stream.events()
        next(events)
        take(store, "one")
        shown = models(server.http)["one"]
        assert (shown["state"], shown["leases"]) == ("loaded", 1)
        assert used_bytes(server.http) == demo_bytes + shown["memory_bytes"]
        refused = server.http.post("/admin/models/one/unload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")
        assert ask(server, model="one").json()["error"]["code"] == "model_not_found"
        *_, last = events
        assert last == "[DONE]"
    assert wait_until(lambda: used_bytes(server.http) == demo_bytes)
    assert set(models(server.http)) == {"demo"}
    assert server.http.post("/admin/models/one/unload").status_code == 404


def test_what_was_removed_can_be_unloaded_by_name(
    make_server: Make, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexa_runtime.serving.pool._IDLE_CHECK_S", 3600)
    bring(store, tmp_path, "one")
    server = make_server(**settings_for(store))
    assert ask(server, model="one").status_code == 200
    take(store, "one")
    assert models(server.http)["one"]["state"] == "loaded"
    assert server.http.post("/admin/models/one/unload").status_code == 200
    assert set(models(server.http)) == {"demo"}


@pytest.mark.parametrize("default", ["demo", "one"])
def test_a_newer_revision_takes_the_place_of_the_old_one(
    make_server: Make, store: ModelStore, tmp_path: Path, default: str
) -> None:
    old = bring(store, tmp_path, "one")
    server = make_server(**settings_for(store, NEXA_MODEL_ID=default))
    assert ask(server, model="one").status_code == 200
    with server.stream("Hello", model="one", ignore_eos=True, max_tokens=300) as stream:
        events = stream.events()
        next(events)
        new = bring(store, tmp_path, "one", "b")
        assert models(server.http)["one"]["id"] == old.id  # it is the old one that is in memory
        *_, last = events
        assert last == "[DONE]"
    assert wait_until(lambda: models(server.http)["one"]["id"] == new.id)
    assert ask(server, model="one").status_code == 200
    assert models(server.http)["one"]["state"] == "loaded"


def test_a_repaired_model_is_served_at_once(make_server: Make, store: ModelStore, tmp_path: Path) -> None:
    record = bring(store, tmp_path, "one")
    server = make_server(**settings_for(store))
    damage(store, record)
    for _ in range(2):
        assert ask(server, model="one").json()["error"]["code"] == "model_load_failed"
    store.paths(record)[0].unlink()
    assert ask(server, model="one").json()["error"]["code"] == "model_not_found"
    bring(store, tmp_path, "one")
    assert ask(server, model="one:latest").status_code == 200


def test_a_fault_does_not_end_the_sweeping(
    make_server: Make, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(store, tmp_path, "one")
    server = make_server(**settings_for(store, NEXA_KEEP_ALIVE_S=1))
    faults = iter([OSError("once")])
    tidy = server.app.dispatcher.pool._tidy

    async def fail_once() -> None:
        for fault in faults:
            raise fault
        await tidy()

    monkeypatch.setattr(server.app.dispatcher.pool, "_tidy", fail_once)
    assert ask(server, model="one").status_code == 200
    assert wait_until(lambda: models(server.http)["one"]["state"] == "stored")


def test_a_damaged_default_of_the_store_leaves_the_server_alive(store: ModelStore, tmp_path: Path) -> None:
    record = bring(store, tmp_path, "one")
    damage(store, record)
    settings = settings_for(store, NEXA_MODEL_ID="one", NEXA_PORT=0)
    env = os.environ | {name: str(value) for name, value in settings.items()}
    with subprocess.Popen([NEXA, "serve"], env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "Nexa Runtime serves" in line:
                    break
            assert any("nexa-runtime verify one" in line for line in said)
            url = said[-1].split(" at ")[1].split()[0]
            with httpx.Client(base_url=url, timeout=60) as http:
                assert wait_until(lambda: _answers(http))
                unready = http.get("/readyz")
                assert unready.status_code == 503
                assert "nexa-runtime pull one" in unready.json()["reason"]
                assert str(store.root) not in unready.json()["reason"]
                assert models(http)["one"]["state"] == "failed"
                store.paths(record)[0].unlink()
                bring(store, tmp_path, "one")
                assert wait_until(lambda: is_ready(http))
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert process.returncode == 0


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_damaged_default_that_is_named_by_its_path_ends_the_start(tmp_path: Path) -> None:
    path = copy_model(tmp_path / "bad.gguf", chat_template="{% for x in %}")
    with pytest.raises(ModelFileError, match="template"):
        open_pool(load_settings({"NEXA_MODEL_ID": str(path), "NEXA_CTX_SIZE": 1024}))
