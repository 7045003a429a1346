"""Faults of what the server writes to: the log's target, the database of usage records.

As ``fault_ends``.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from scripts.bench.child import Child, chat, expect
from scripts.bench.fault_ends import records
from scripts.bench.postgres import Postgres

AWAY_S = 30.0
_DELIVERY_S = 60.0
_TABLE = "ai_runtime_logs"


async def log_full(child: Child) -> str:
    """The log's target is full: requests are answered, and the server ends as it should."""
    await child.ready()
    child.signal()
    await child.ended()
    child.start(Path("/dev/full"))
    await child.ready()
    answers = [await child.ask(chat(stream=index % 2 == 0)) for index in range(10)]
    expect(all(one.status == 200 for one in answers), f"answers: {[one.status for one in answers]}")
    child.signal()
    code = await child.ended()
    expect(code == 0, f"exit code {code}")
    return "10 of 10 answered, exit code 0"


async def database_away(child: Child, database: Postgres) -> str:
    """The database of usage records is stopped for half a minute under load: none is lost, none twice."""
    await _ready_with_table(child)
    async with _load(child) as times:
        await asyncio.sleep(5)
        await asyncio.to_thread(database.stop)
        begin = time.perf_counter()
        await asyncio.sleep(AWAY_S)
        end = time.perf_counter()
        await asyncio.to_thread(database.start)
        await asyncio.sleep(5)
    while_away = [took for at, took in times if begin <= at < end]
    before = [took for at, took in times if at < begin]
    await _delivered(child, database, len(times))
    child.signal()
    expect(await child.ended() == 0, f"exit code {child.process.returncode}")
    slowest = f"slowest {max(while_away):.2f} s while it was away, {max(before):.2f} s before"
    return f"{len(times)} requests, {len(times)} records, each once; {slowest}"


async def kill_with_spool(child: Child, database: Postgres) -> str:
    """SIGKILL under load while the database is away, and a start: what was spooled is delivered."""
    await _ready_with_table(child)
    await asyncio.to_thread(database.stop)
    async with _load(child) as times:
        await asyncio.sleep(5)
    await asyncio.sleep(1.0)  # the spool is written beside the requests
    child.kill()
    await asyncio.to_thread(database.start)
    child.start()
    seconds = await child.ready()
    await _delivered(child, database, len(times))
    return f"ready after {seconds:.1f} s; {len(times)} requests, {len(times)} records, each once"


async def _ready_with_table(child: Child) -> None:
    await child.command("usage", "init")
    await child.ready()


@asynccontextmanager
async def _load(child: Child) -> AsyncIterator[list[tuple[float, float]]]:
    """Six clients ask inside; for each answer when it was asked for and how long it took."""
    times: list[tuple[float, float]] = []
    is_over = asyncio.Event()

    async def one_client() -> None:
        while not is_over.is_set():
            begin = time.perf_counter()
            answer = await child.ask(chat(ignore_eos=True, max_tokens=8))
            expect(answer.status == 200, f"a request got {answer.status} {answer.error}")
            times.append((begin, time.perf_counter() - begin))

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(one_client())
        yield times
        is_over.set()


async def _delivered(child: Child, database: Postgres, num_requests: int) -> None:
    """Wait until every record is in the table. Its key keeps any from coming twice; so does a count."""
    deadline = time.perf_counter() + _DELIVERY_S
    while (found := database.query(f"select count(*), count(distinct id) from {_TABLE}")) != (
        f"{num_requests}|{num_requests}"
    ):
        expect(time.perf_counter() < deadline, f"{num_requests} requests, records|different ones: {found}")
        await asyncio.sleep(0.5)
    expect(len(records(child)) in (0, num_requests), f"the request log has {len(records(child))} records")
