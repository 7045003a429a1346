"""Fixtures: the bundled model, loaded once, and servers on real sockets."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from nexa_runtime.llama import Model
from nexa_runtime.serving.library import DEMO_PATH
from nexa_runtime.store.gguf import read_header
from nexa_runtime.telemetry import configure_logging
from tests.support import LiveServer, copy_model, free_settings

configure_logging("INFO")
# Started in the background of a script, these tests and every command they start would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


_THOUGHT = (
    "{%- if message.reasoning_content -%}"
    "{{- '<think>' + message.reasoning_content + '</think>' -}}"
    "{%- endif -%}"
)
_THINKS = "{%- if thinking is not false -%}{{- '<think>\\n' -}}{%- endif -%}"


def pytest_configure() -> None:
    """Workers have a core each: llama.cpp's threads of one would wait for those of another."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    """The bundled model without a context."""
    loaded = Model.load(DEMO_PATH)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server with the default settings, shared by the tests that leave it as it was."""
    with LiveServer(free_settings()) as live:
        yield live


@pytest.fixture(scope="session")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server for whatever random bodies ask: it says four tokens at most, and never asks a hub."""
    folder = tmp_path_factory.mktemp("bounded")
    tenants = folder / "tenants.yaml"
    tenants.write_text("tenants: {demo: {NEXA_MAX_OUTPUT_TOKENS: 4}}")
    settings = {
        "NEXA_TENANTS_FILE": str(tenants),
        "DEFAULT_TENANT_ID": "demo",
        "NEXA_MODEL_STORE": str(folder / "store"),
        "NEXA_STATE_DIR": str(folder / "state"),
        "HF_HUB_OFFLINE": "1",
    }
    with LiveServer(free_settings(**settings)) as live:
        yield live


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The demo model with a template that opens its thinking, unless that is switched off."""
    template = str(read_header(DEMO_PATH).metadata["tokenizer.chat_template"])
    said = "{{- '<|im_start|>assistant\\n' -}}{{- answer -}}"
    opens = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    assert said in template
    assert opens in template
    template = template.replace(said, said.replace("{{- answer", _THOUGHT + "{{- answer"))
    template = template.replace(opens, opens + _THINKS)
    path = copy_model(tmp_path_factory.mktemp("models") / "thinker.gguf", chat_template=template)
    with LiveServer(free_settings(NEXA_MODEL_ID=str(path), NEXA_CTX_SIZE=2048)) as live:
        yield live


@pytest.fixture
def make_server() -> Iterator[Callable[..., LiveServer]]:
    """Servers with settings of their own: ``make_server(NEXA_SLOTS=2)``."""
    started: list[LiveServer] = []

    def make(**overrides: object) -> LiveServer:
        live = LiveServer(free_settings(**overrides))
        started.append(live)
        return live

    yield make
    for live in started:
        live.stop()
