"""Faults that end the server: signals at every moment, and a kill.

Each function is one fault: it returns what was seen, and raises ``Broken`` for what should not have been.
``faults`` runs them.
"""

import asyncio
import json
import signal
import socket

from nexa_runtime.exit_codes import CUT_SHORT, DONE, TERMINATED
from nexa_runtime.serving.library import DEMO_PATH
from scripts.bench.answers import problem_of_refusal
from scripts.bench.child import CHAT, ENDLESS, Child, Stream, chat, expect, until


async def sigterm_idle(child: Child) -> str:
    """SIGTERM with nothing to do, one client connected: it ends at once."""
    await child.ready()
    _, writer = await asyncio.open_connection("127.0.0.1", child.port)
    child.signal()
    seconds = await until(lambda: child.process.poll() is not None, 10, "an idle server did not end")
    writer.close()
    expect(child.process.returncode == DONE, f"exit code {child.process.returncode}")
    expect("Traceback" not in child.log, "the log has a traceback")
    return f"ended after {seconds:.2f} s with {DONE}"


async def sigterm_streaming(child: Child) -> str:
    """SIGTERM while an answer streams: it is finished, and nothing new is taken."""
    await child.ready()
    stream = Stream(child, ignore_eos=True, max_tokens=400)
    await stream.begin()
    child.signal()
    await asyncio.sleep(0.2)
    ready = await child.status("/readyz")
    refused = await child.ask(chat())
    ending = await stream.end()
    code = await child.ended()
    expect(ready == 503, f"/readyz said {ready}")
    problem = problem_of_refusal(refused.status, refused.headers, refused.body, CHAT)
    expect(refused.status == 503 and problem is None, f"a new request got {refused.status}, {problem}")
    expect(refused.headers.get("connection") == "close", "a new request's connection was kept")
    expect(ending == "complete", f"the stream ended: {ending}")
    expect(code == DONE, f"exit code {code}")
    statuses = [one["status"] for one in records(child)]
    expect(statuses == [200], f"records of {statuses}")
    return f"the stream was complete, a new request got 503, one record, exit code {code}"


async def sigterm_survivor(child: Child) -> str:
    """SIGTERM while an answer streams that takes longer than ``NEXA_DRAIN_S``: it is told."""
    await child.ready()
    stream = Stream(child, **ENDLESS)
    await stream.begin()
    child.signal()
    ending, code = await stream.end(), await child.ended()
    expect(ending == "server_shutting_down", f"the stream ended: {ending}")
    expect(code == DONE, f"exit code {code}")
    expect(len(records(child)) == 1, f"{len(records(child))} records")
    return f"the stream ended with {ending}, one record, exit code {code}"


async def sigterm_loading(child: Child) -> str:
    """SIGTERM while the model is loaded: it ends at once."""

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", child.port)) == 0

    await until(listens, 30, "the server did not listen")
    child.signal()
    code = await child.ended(10)
    expect(code == TERMINATED, f"exit code {code}")
    expect("Traceback" not in child.log, "the log has a traceback")
    return f"exit code {code}"


async def sigterm_twice(child: Child) -> str:
    """A second SIGTERM while an answer is finished: now."""
    await child.ready()
    stream = Stream(child, **ENDLESS)
    await stream.begin()
    child.signal()
    await asyncio.sleep(0.3)
    child.signal()
    seconds = await until(lambda: child.process.poll() is not None, 10, "the process did not end")
    expect(child.process.returncode == CUT_SHORT, f"exit code {child.process.returncode}")
    expect("Traceback" not in child.log, "the log has a traceback")
    return f"ended {seconds:.2f} s later with {CUT_SHORT}; the stream: {await stream.end()}"


async def kill_under_load(child: Child) -> str:
    """SIGKILL under load, and a start: ready again, the store whole, the request log readable."""
    await child.ready()
    await child.command("import", str(DEMO_PATH), "--name", "kept")
    load = [asyncio.create_task(_ask_on(child)) for _ in range(12)]
    await asyncio.sleep(3)
    child.signal(signal.SIGKILL)
    await child.ended()
    for task in load:
        task.cancel()
    await asyncio.wait(load)
    before = len(records(child))
    child.start()
    seconds = await child.ready()
    await child.command("verify")
    answer = await child.ask(chat(model="kept"))
    expect(answer.status == 200, f"the kept model answers with {answer.status} {answer.body[:200]!r}")
    child.signal()
    code = await child.ended()
    expect(code == DONE, f"exit code {code}")
    expect(before > 0 and len(records(child)) > before, "the request log did not go on")
    return f"ready after {seconds:.1f} s, the store is whole, {before} records were left and it went on"


def records(child: Child) -> list[dict[str, object]]:
    """The lines of the request log; the last one may be cut by a kill."""
    lines = child.request_log.read_text().splitlines() if child.request_log.exists() else []
    whole = [line for index, line in enumerate(lines) if line.endswith("}") or index < len(lines) - 1]
    return [json.loads(line) for line in whole if line.endswith("}")]


async def _ask_on(child: Child) -> None:
    while True:
        await child.ask(chat(ignore_eos=True, max_tokens=32, stream=True))
