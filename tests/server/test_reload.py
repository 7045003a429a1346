"""SIGHUP: what is read again, and that a bad file changes nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from nexa_runtime.store.importing import import_file
from nexa_runtime.store.store import ModelStore
from nexa_runtime.telemetry import is_debugging, set_level
from tests.support import LiveServer, copy_model, free_port, free_settings, wait_until

NEXA = Path(sys.executable).with_name("nexa-runtime")
QUESTION = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}


def catalog(**entry: object) -> str:
    return yaml.safe_dump({"models": [{"name": "one", "repo": "nexa/one-GGUF", **entry}]})


class Box:
    """A server of this process and the files of its owner."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.env_file = folder / "nexa.env"
        self.catalog = folder / "models.yaml"
        self.tenants = folder / "tenants.yaml"
        self.env_file.write_text("# the box\nLOG_LEVEL=debug\n")
        self.catalog.write_text(catalog())
        self.tenants.write_text("tenants: {demo: {}}")
        store = ModelStore(folder / "store")
        import_file(copy_model(folder / "one.gguf", name="one"), store=store, name="one")
        self._capsys = capsys
        self._text = ""
        self.live = LiveServer(
            free_settings(
                NEXA_CATALOG_FILE=str(self.catalog),
                NEXA_TENANTS_FILE=str(self.tenants),
                NEXA_MODEL_STORE=str(store.root),
                NEXA_STATE_DIR=str(folder / "state"),
                NEXA_CTX_SIZE=1024,
                DEFAULT_TENANT_ID="demo",
            )
        )

    def reload(self) -> dict[str, Any]:
        """Read again as on the signal; the lines of that by their event."""
        self._capsys.readouterr()
        self.live.app.reloader.ask()
        lines: list[dict[str, Any]] = []

        def is_done() -> bool:
            lines.extend(json.loads(line) for line in self._capsys.readouterr().err.splitlines())
            return any(line["event"] == "reloaded" for line in lines)

        assert wait_until(is_done)
        return {line["event"]: line for line in lines}

    def slots_of(self, model: str) -> int:
        """With how many slots a model is loaded."""
        (loaded,) = [one for one in self.live.app.dispatcher.pool.models() if one.id == model]
        return loaded.slots


@pytest.fixture
def box(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    one = Box(tmp_path, capsys)
    monkeypatch.setenv("NEXA_ENV_FILE", str(one.env_file))
    with one.live:
        yield one
    set_level("INFO")


def ask_one(box: Box) -> Any:
    """The answer of the store's model."""
    response = box.live.http.post("/v1/chat/completions", json={**QUESTION, "model": "one"})
    assert response.status_code == 200
    return response.json()


def test_everything_is_read_again(box: Box) -> None:
    ask_one(box)
    assert (is_debugging(), box.slots_of("one")) == (False, 8)
    box.catalog.write_text(catalog(engine={"slots": 3}))
    box.tenants.write_text("tenants: {demo: {NEXA_MAX_OUTPUT_TOKENS: 2}, acme: {}}")
    said = box.reload()["reloaded"]
    assert (said["log_level"], said["catalog_models"], said["tenants"]) == ("DEBUG", 1, 2)
    assert is_debugging()
    (tenant,) = box.live.app._tenancy.directory.known()
    assert tenant.limits.max_output_tokens == 2
    models = box.live.app.dispatcher.pool.models
    assert wait_until(lambda: [one.id for one in models()] == ["demo"])  # with its old options it is gone
    assert ask_one(box)["usage"]["completion_tokens"] <= 2
    assert box.slots_of("one") == 3


@pytest.mark.parametrize(
    ("what", "content", "words"),
    [
        ("log level", "LOG_LEVEL=loud", "must be one of DEBUG"),
        ("log level", "what is this", "nexa.env, line 1 is not NAME=value"),
        ("catalog", "models: {", "models.yaml"),
        ("tenants file", "tenants: {", "tenants.yaml"),
    ],
    ids=["level", "env file", "catalog", "tenants"],
)
def test_a_file_that_is_no_good_changes_nothing_and_is_named(
    box: Box, what: str, content: str, words: str
) -> None:
    ask_one(box)
    files = {"log level": box.env_file, "catalog": box.catalog, "tenants file": box.tenants}
    files[what].write_text(content)
    for _ in range(2):  # it is said each time that somebody asks
        said = box.reload()
        assert said["reload_rejected"]["what"] == what
        assert words in said["reload_rejected"]["reason"]
    assert is_debugging() is (what != "log level")
    assert ask_one(box)["model"] == "one"
    assert box.slots_of("one") == 8


def test_a_server_in_a_terminal_reloads_on_the_signal_and_ends_with_the_terminal() -> None:
    port = free_port()
    ours, theirs = os.openpty()
    in_terminal = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", in_terminal, str(NEXA), "serve", "--port", str(port)]
    with subprocess.Popen(command, stdin=theirs) as process:
        try:
            os.close(theirs)
            shown = _read_until(ours, "Nexa Runtime serves")
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            assert httpx.post(url, json=QUESTION, timeout=30).status_code == 200
            process.send_signal(signal.SIGHUP)
            shown += _read_until(ours, "reloaded")
            assert "path=/v1/chat/completions" in shown
            assert '{"timestamp"' not in shown
            assert httpx.post(url, json=QUESTION, timeout=30).status_code == 200
            os.close(ours)
            assert process.wait(30) == 0
        finally:
            process.kill()


def _read_until(descriptor: int, words: str) -> str:
    text = ""
    while words not in text:
        text += os.read(descriptor, 4096).decode()
    return text
