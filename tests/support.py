"""What several tests need: a server in this process on a real socket, and the near-tie check."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import gguf
import httpx
import numpy as np
import numpy.typing as npt

from nexa_runtime.config import Settings, load_settings
from nexa_runtime.engine.generation_lane import StepCounts
from nexa_runtime.engine.model_engine import ModelEngine
from nexa_runtime.engine.sequence import StepPlan, StepResult
from nexa_runtime.llama import Context, ContextParams, DecodeStatus, Model
from nexa_runtime.server.app import App, bind, bind_metrics
from nexa_runtime.server.lifecycle import Server
from nexa_runtime.serving.library import DEMO_PATH
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.tenancy.setup import open_tenancy

NEAR_TIE = 0.05
"""Two logits this close may change places when llama.cpp computes them in another batch size."""


def free_settings(**overrides: object) -> Settings:
    """The default settings on any free port; at the end requests are cut at once."""
    return load_settings({"NEXA_PORT": 0, "NEXA_DRAIN_S": 0, **overrides})


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Poll until ``condition`` holds; False if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def books_agree(engine: ModelEngine) -> bool:
    """Whether an idle engine's books are whole and say what llama.cpp holds, all of it resident."""
    assert engine.generation is not None
    scheduler, runner = engine.generation.scheduler, engine.generation.runner
    scheduler.check_integrity()
    holdings = list(scheduler._kv.holdings())
    held = sum(holding.num_cells for holding in holdings)
    return all(one.is_resident for one in holdings) and held == runner.num_cells() and not runner.num_open


class LiveServer:
    """The real application behind the real uvicorn on a loopback port, in a thread of this process."""

    def __init__(
        self, settings: Settings, change: Callable[[LoadedModel], None] = lambda model: None
    ) -> None:
        self._listener = bind(settings.server)
        pool = open_pool(settings)
        assert pool.default is not None
        self.loaded = pool.default
        change(self.loaded)
        self.metrics_listener = bind_metrics(settings.server, settings.metrics)
        tenancy = open_tenancy(settings.tenancy, settings.vault)
        self.app = App(pool, tenancy, settings, self.metrics_listener)
        self._server = Server(self.app, settings.server)
        self._thread = threading.Thread(target=self._run, name="live-server")
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        assert wait_until(lambda: self._server.started)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def engine(self) -> ModelEngine:
        """The engine of its one model."""
        return self.loaded.engine

    @property
    def totals(self) -> StepCounts:
        """What its steps were made of."""
        assert self.engine.generation is not None
        return self.engine.generation.totals

    def chat(self, content: str, **fields: object) -> httpx.Response:
        """One question to ``/v1/chat/completions``."""
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    @contextmanager
    def stream(self, content: str, **fields: object) -> Iterator["EventStream"]:
        """One streamed question."""
        body = {"messages": [{"role": "user", "content": content}], "stream": True, **fields}
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            yield EventStream(response)

    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        stats = self.engine.stats
        return not (stats.num_running or stats.num_waiting or self.app.dispatcher.num_open)

    def has_clean_books(self) -> bool:
        """Whether llama.cpp holds what the books say, and the books hold only what has ended. When idle.

        The engine may still move to host memory what has just ended; so a disagreement is looked at again.
        """

        def agree() -> bool:
            with suppress(AssertionError, RuntimeError):
                return books_agree(self.engine)
            return False

        return wait_until(agree) or books_agree(self.engine)

    def stop(self) -> None:
        """Shut down as on SIGTERM; a second call does nothing."""
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.http.close()
        self._listener.close()


class EventStream:
    """A stream of server-sent events, as it comes."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def events(self) -> Iterator[Any]:
        """Each ``data:`` as JSON, the last one as the text ``[DONE]``."""
        for line in self._lines:
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                yield data if data == "[DONE]" else json.loads(data)

    def read(self) -> tuple[str, str | None, list[Any]]:
        """Text and finish reason of the only choice, and every event."""
        text, reason, events = "", None, []
        for event in self.events():
            events.append(event)
            for choice in event["choices"] if isinstance(event, dict) and "choices" in event else ():
                text += choice.get("text", "") or choice.get("delta", {}).get("content", "")
                reason = choice["finish_reason"] or reason
        return text, reason, events


def assert_same_or_near_tie(model: Model, prompt: npt.NDArray[np.int32], left: str, right: str) -> None:
    """Two greedy answers to one prompt are equal, or part where two tokens were almost equally likely."""
    if left == right:
        return
    vocab = model.vocab
    a, b = (vocab.tokenize(text, parse_special=False).tolist() for text in (left, right))
    end = min(vocab.eog_tokens)
    a, b = [*a, end], [*b, end]
    at = next(index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    tokens = np.concatenate([prompt, np.array(a[:at], dtype=np.int32)])
    context = Context(model, ContextParams(len(tokens) + 64, 1, len(tokens), 1, 2))
    try:
        batch = context.make_batch()
        batch.add(0, tokens, 0, wants_logits=True)
        assert context.decode(batch) is DecodeStatus.OK
        row = context.logits(1)[0]
        gap = abs(float(row[a[at]] - row[b[at]]))
    finally:
        context.close()
    assert gap < NEAR_TIE, f"{left!r} and {right!r} part at a gap of {gap}"


def copy_model(out: Path, *, without: str = "", **changes: object) -> Path:
    """The bundled model with other metadata: ``changes`` by the last part of their key.

    Keys that start with ``without`` are left out; what is not a text is written as a float.
    """
    source = gguf.GGUFReader(DEMO_PATH)
    writer = gguf.GGUFWriter(out, "llama")
    for key, field in source.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or (without and key.startswith(without)):
            continue
        value = changes.pop(key.rsplit(".", 1)[-1], field.contents())
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], sub_type)
    for name, value in changes.items():
        writer.add_float32(f"{without}{name}", float(str(value)))
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def hold_steps(gate: threading.Event, loaded: LoadedModel) -> None:
    """Let no step of a model that generates begin while ``gate`` is shut."""
    assert loaded.engine.generation is not None
    runner = loaded.engine.generation.runner
    execute = runner.execute

    def wait(plan: StepPlan) -> StepResult:
        gate.wait()
        return execute(plan)

    runner.execute = wait  # type: ignore[method-assign]
