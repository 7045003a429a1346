"""Faults of what the server writes to: the log's target, the database of usage records.

As ``fault_ends``.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.bench.child import Child, chat, expect
from scripts.bench.postgres import Postgres

AWAY_S = 30.0
_DELIVERY_S = 60.0
_SPOOLED_S = 1.0
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
    async with _load(child) as load:
        await asyncio.sleep(5)
        await asyncio.to_thread(database.stop)
        begin = time.perf_counter()
        await asyncio.sleep(AWAY_S)
        end = time.perf_counter()
        await asyncio.to_thread(database.start)
        await asyncio.sleep(5)
    ids = {one.request_id for one in load.answered}
    num_records = await _delivered(database, ids)
    expect(num_records == len(ids), f"{len(ids)} requests and {num_records} records")
    child.signal()
    expect(await child.ended() == 0, f"exit code {child.process.returncode}")
    while_away = max(one.took_s for one in load.answered if begin <= one.at < end)
    before = max(one.took_s for one in load.answered if one.at < begin)
    slowest = f"slowest {while_away:.2f} s while it was away, {before:.2f} s before"
    return f"{len(ids)} requests, {num_records} records, each once; {slowest}"


async def kill_with_spool(child: Child, database: Postgres) -> str:
    """SIGKILL under load while the database is away, and a start: what was spooled is delivered."""
    await _ready_with_table(child)
    await asyncio.to_thread(database.stop)
    async with _load(child) as load:
        await asyncio.sleep(5)
        load.is_over.set()
        killed_at = time.perf_counter()
        child.kill()
    await asyncio.to_thread(database.start)
    child.start()
    seconds = await child.ready()
    # The spool is written beside the requests, some times a second.
    ids = {one.request_id for one in load.answered if one.at + one.took_s < killed_at - _SPOOLED_S}
    num_records = await _delivered(database, ids)
    return (
        f"ready after {seconds:.1f} s; all {len(ids)} answered before the last second are among {num_records}"
    )


async def _ready_with_table(child: Child) -> None:
    await child.command("usage", "init")
    await child.ready()


@dataclass(frozen=True)
class _Answered:
    """When a request was asked, and how long its answer took."""

    at: float
    took_s: float
    request_id: str


@dataclass
class _Load:
    """``is_over``: from then on nobody asks, and an answer that is cut is nothing to complain of."""

    answered: list[_Answered] = field(default_factory=list)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def _load(child: Child) -> AsyncIterator[_Load]:
    """Six clients ask inside."""
    load = _Load()

    async def one_client() -> None:
        while not load.is_over.is_set():
            begin = time.perf_counter()
            answer = await child.ask(chat(ignore_eos=True, max_tokens=8))
            if answer.status == 200 and answer.error is None:
                took_s = time.perf_counter() - begin
                load.answered.append(_Answered(begin, took_s, answer.headers["x-request-id"]))
            else:
                expect(load.is_over.is_set(), f"a request got {answer.status} {answer.error}")

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(one_client())
        yield load
        load.is_over.set()


async def _delivered(database: Postgres, request_ids: set[str]) -> int:
    """Wait until these requests' records are in the table; how many records it has, each one once."""
    deadline = time.perf_counter() + _DELIVERY_S
    while missing := request_ids - set(database.query(f"select request_id from {_TABLE}").split()):
        expect(time.perf_counter() < deadline, f"{len(missing)} of {len(request_ids)} records are lost")
        await asyncio.sleep(0.5)
    counts = database.query(f"select count(*), count(distinct id), count(distinct request_id) from {_TABLE}")
    expect(len(set(counts.split("|"))) == 1, f"records, ids, request ids: {counts}")
    return int(counts.split("|")[0])
