"""Liveness and readiness, and what the watchdog does to a process whose engine hangs."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from nexa_runtime.engine.model_engine import StepShape
from nexa_runtime.exit_codes import ENGINE_HUNG
from nexa_runtime.llama import Context, EmbeddingContext
from tests.server.child import FAULTY, Child
from tests.support import LiveServer, free_settings, hold_steps, wait_until

Make = Callable[..., LiveServer]


def codes(server: LiveServer) -> list[str]:
    return [reason["code"] for reason in server.http.get("/readyz").json()["reasons"]]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """While it is shut, no step of ``held`` ends."""
    event = threading.Event()
    event.set()
    yield event
    event.set()


@pytest.fixture
def held(gate: threading.Event) -> Iterator[LiveServer]:
    with LiveServer(free_settings(NEXA_STEP_LIMIT_S=1.5), partial(hold_steps, gate)) as live:
        yield live
        gate.set()


def test_while_the_engine_hangs_it_is_alive_and_not_ready(held: LiveServer, gate: threading.Event) -> None:
    assert held.http.get("/readyz").json()["reasons"] == []
    gate.clear()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(held.chat("Hello", max_tokens=2)))
    asking.start()
    assert wait_until(lambda: codes(held) == ["engine_hung"])
    with httpx.Client(base_url=held.url) as http:
        assert http.get("/health").json() == {"status": "ok"}
        unready = http.get("/readyz")
    gate.set()
    assert unready.status_code == 503
    assert unready.json()["reason"] == unready.json()["reasons"][0]["message"]
    asking.join()
    assert answers[0].status_code == 200
    assert wait_until(lambda: codes(held) == [])
    assert held.http.get("/readyz").status_code == 200


def test_a_server_that_drains_is_not_ready(make_server: Make) -> None:
    server = make_server()
    with server.stream("Hello", ignore_eos=True, max_tokens=300) as stream:
        next(stream.events())
        server.app.dispatcher.drain()
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/readyz").status_code == 503
        assert codes(server) == ["draining"]


def test_an_engine_that_hangs_ends_the_process_and_says_why(tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    settings = {"TEST_HANG_FILE": hang, "NEXA_STEP_LIMIT_S": 0.4}
    with Child(FAULTY, **settings) as server, server.client() as client:
        server.wait_ready()
        hang.touch()
        body = {"messages": [{"role": "user", "content": "Hello"}]}
        with pytest.raises(httpx.TransportError):
            client.post("/v1/chat/completions", json=body)
        assert server.end() == ENGINE_HUNG
    (last,) = server.said("given_up")
    assert (last["hung"], last["model"], last["lane"], last["exit_code"]) == (
        "engine", "demo", "generation", ENGINE_HUNG,
    )  # fmt: skip
    assert last["num_rows"] > 0
    assert last["seconds"] >= 2
    assert any("model_engine.py" in call for call in last["stack"])
    assert len(server.said("engine_hangs")) == 1


def test_an_event_loop_that_is_blocked_ends_the_process_and_says_where(tmp_path: Path) -> None:
    block = tmp_path / "block"
    settings = {"TEST_BLOCK_FILE": block, "NEXA_STEP_LIMIT_S": 0.4}
    with Child(FAULTY, **settings) as server, server.client() as client:
        server.wait_ready()
        block.touch()
        with pytest.raises(httpx.TransportError):
            client.get("/health")
        assert server.end() == ENGINE_HUNG
    (last,) = server.said("given_up")
    assert last["hung"] == "event loop"
    assert any("faulty.py" in call for call in last["stack"])


def test_the_shape_of_a_step_is_told_while_it_is_computed(
    make_server: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    engine = server.app.dispatcher.engine
    shapes: list[StepShape | None] = []

    def note(function: Any) -> Any:
        def noting(*arguments: Any) -> Any:
            shapes.append(engine.step_shape)
            return function(*arguments)

        return noting

    monkeypatch.setattr(Context, "decode", note(Context.decode))
    monkeypatch.setattr(EmbeddingContext, "embed", note(EmbeddingContext.embed))
    ids = [1, 2, 3]
    server.http.post("/v1/completions", json={"prompt": ids, "max_tokens": 1})
    server.http.post("/v1/embeddings", json={"input": [ids, ids]})
    assert shapes == [
        StepShape("demo", "generation", 3, 0, 1),
        StepShape("demo", "embedding", 6, 0, 2),
    ]
    assert wait_until(lambda: not engine.is_busy)
    assert engine.step_shape is None


def test_the_end_waits_for_the_engine_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    with LiveServer(free_settings()) as live:
        stop = live.app.dispatcher.engine.stop
        monkeypatch.setattr(live.app.dispatcher.engine, "stop", lambda: waits.append(stop()))
    assert waits == [True]


def test_a_server_without_the_limit_watches_nothing(make_server: Make) -> None:
    server = make_server(NEXA_STEP_LIMIT_S=0)
    assert server.chat("Hello", max_tokens=1).status_code == 200
    names = [thread.name for thread in threading.enumerate() if thread.name == "nexa-watchdog"]
    server.stop()
    assert names == [thread.name for thread in threading.enumerate() if thread.name == "nexa-watchdog"]
