"""What the server holds at the end of a long mixed load, beside what it held before.

Starts a server of its own with the demo model, six tenants and a short queue, and puts a mixed load on it
(``mixed``). Before and after, once the server is idle, it counts what could leak: threads, files, asyncio
tasks, open requests, slots, leases, cells that nobody holds. In between it samples memory every few seconds.
Every request that was let in must have left one record. Ends with 1 when a bound is broken.

    scripts/bench/soak [--minutes 20] [--json FILE] [--samples FILE]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import httpx

from scripts.bench.common import BenchError, RunningServer, serving_tenants, settle
from scripts.bench.mixed import TENANTS, MixedLoad, Totals
from scripts.bench.process import held_by, least_squares, slope
from scripts.bench.raw import request_bytes, send

MAX_GROWTH_MB_PER_MIN = 1.0

_OPTIONS = {"--slots": 4, "--ctx-size": 4096}
_SETTINGS: dict[str, object] = {
    "NEXA_MAX_QUEUE": 8,
    # Small, so that it is full before the measurement begins: what is kept on purpose is no leak.
    "NEXA_HOST_CACHE": "8M",
    "HF_HUB_OFFLINE": 1,
}
_WARM_UP_PART = 0.15
_MAX_WARM_UP_S = 180.0
_THREAD_IDLE_S = 11.0
"""Idle worker threads end after ten seconds, when the next one is asked for something."""


@dataclass(frozen=True)
class Sample:
    """What the server holds at one moment. ``num_orphan_cells``: used, and in no tenant's books."""

    at_s: float
    rss_mb: float
    num_threads: int
    num_files: int
    num_tasks: int
    num_open: int
    num_running: int
    num_waiting: int
    num_leases: int
    num_cells: int
    num_orphan_cells: int
    num_admitted: int


_LEAKS = {
    "num_threads": "threads",
    "num_files": "file descriptors",
    "num_tasks": "asyncio tasks",
    "num_open": "open requests (tickets)",
    "num_running": "slots in use",
    "num_waiting": "sequences that wait",
    "num_leases": "leases",
    "num_orphan_cells": "cells in nobody's books",
}
"""What must not be more at the end than at the beginning, both idle."""


class Soak:
    """One run against one server."""

    def __init__(
        self, server: RunningServer, arguments: argparse.Namespace, client: httpx.AsyncClient
    ) -> None:
        self._server = server
        self._arguments = arguments
        self._client = client
        self._start = time.perf_counter()
        self._load = MixedLoad(server.url, seed=arguments.seed, num_clients=arguments.clients)
        self.samples: list[Sample] = []

    async def run(self) -> dict[str, Any]:
        """Warm up, look, load, look again."""
        seconds = self._arguments.minutes * 60
        warm_up_s = min(seconds * _WARM_UP_PART, _MAX_WARM_UP_S)
        _say(f"warming up for {warm_up_s:.0f} s")
        first = await self._load.run(warm_up_s)
        before = await self._rest()
        _say(f"the load runs for {seconds - warm_up_s:.0f} s")
        sampling = asyncio.create_task(self._sample_on())
        totals = await self._load.run(seconds - warm_up_s)
        sampling.cancel()
        after = await self._rest()
        return {
            "minutes": self._arguments.minutes,
            "warm_up": first.described(),
            "load": totals.described(),
            "before": asdict(before),
            "after": asdict(after),
            "rss_mb_per_min": self._growth(),
            "broken": self._broken(before, after, [first, totals]),
        }

    async def _rest(self) -> Sample:
        """What is held when nothing runs and worker threads that nobody needs have ended."""
        await settle(self._client)
        await asyncio.sleep(_THREAD_IDLE_S)
        request = request_bytes("/tokenize", {"content": "rest"}, "plain")
        answer = await send(self._server.url, request)
        if answer.status != 200:
            raise BenchError(f"the idle server answers with {answer.status}")
        await settle(self._client)
        await asyncio.sleep(1.0)  # the connection's end, and the last counts of the engine
        return await self._sample()

    async def _sample_on(self) -> None:
        while True:
            self.samples.append(await self._sample())
            await asyncio.sleep(self._arguments.every)

    async def _sample(self) -> Sample:
        ready = (await self._client.get("/readyz")).json()
        models = (await self._client.get("/admin/models")).json()["models"]
        tenants = (await self._client.get("/admin/tenants")).json()["tenants"]
        engine, held = ready["engine"], held_by(self._server.pid)
        booked = sum(one["cells"] for one in tenants)
        # Each tenant's cells are rounded: shared ones count in parts.
        orphans = abs(engine["num_used_cells"] - booked)
        return Sample(
            at_s=round(time.perf_counter() - self._start, 2),
            rss_mb=held.rss_mb,
            num_threads=held.num_threads,
            num_files=held.num_files,
            num_tasks=ready["tasks"],
            num_open=ready["open_requests"],
            num_running=engine["num_running"],
            num_waiting=engine["num_waiting"],
            num_leases=sum(one["leases"] for one in models),
            num_cells=engine["num_used_cells"],
            num_orphan_cells=0 if orphans <= len(TENANTS) else orphans,
            num_admitted=sum(one["usage"]["requests"] for one in tenants),
        )

    def _growth(self) -> dict[str, float]:
        points = [(one.at_s / 60, one.rss_mb) for one in self.samples]
        return {"theil_sen": round(slope(points), 3), "least_squares": round(least_squares(points), 3)}

    def _broken(self, before: Sample, after: Sample, loads: list[Totals]) -> list[str]:
        broken = []
        for name, label in _LEAKS.items():
            was, now = getattr(before, name), getattr(after, name)
            if now > was:
                broken.append(f"{label}: {was} before, {now} after")
        growth = self._growth()["theil_sen"]
        if growth >= MAX_GROWTH_MB_PER_MIN:
            broken.append(f"memory grows by {growth} MB a minute")
        for one in loads:
            broken += [f"{count} times: {problem}" for problem, count in one.problems.items()]
        return broken


def records_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a request log and of those that it was rotated into."""
    files = path.parent.glob(f"{path.name}*")
    return [json.loads(line) for one in files for line in one.read_text().splitlines()]


def check_records(records: list[dict[str, Any]], num_admitted: int) -> list[str]:
    """What is wrong with the records of a run in which so many requests were let in."""
    ids = {one["id"] for one in records}
    broken = [] if len(ids) == len(records) else [f"{len(records) - len(ids)} records came twice"]
    if len(ids) != num_admitted:
        broken.append(f"{num_admitted} requests were let in and {len(ids)} records are left")
    return broken


def report(found: dict[str, Any]) -> None:
    """Print the table and the verdict."""
    load = found["load"]
    print(f"{load['num_requests']} requests, {load['num_cut']} cut by us; statuses {load['by_status']}")
    print(f"{'':28}{'before':>10}{'after':>10}")
    for field in fields(Sample):
        if field.name != "at_s":
            label = _LEAKS.get(field.name, field.name)
            print(f"{label:28}{found['before'][field.name]:>10}{found['after'][field.name]:>10}")
    growth = found["rss_mb_per_min"]
    print(f"memory, MB/min: {growth['theil_sen']} (Theil-Sen), {growth['least_squares']} (least squares)")
    print(f"records: {found['records']} of {found['after']['num_admitted']} requests that were let in")
    print("\n".join(f"BROKEN: {one}" for one in found["broken"]) or "all bounds hold")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


async def measure(
    server: RunningServer, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[Sample]]:
    """The run, and its samples."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        soak = Soak(server, arguments, client)
        return await soak.run(), soak.samples


def main() -> None:
    """Parse the arguments, run, print; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description="Put a long mixed load on a server and look for leaks.")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=3, help="of each of the six tenants")
    parser.add_argument("--every", type=float, default=3, help="seconds between two samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="file for the server's log")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write each sample there, a JSON line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nexa-soak-") as folder:
        request_log = Path(folder) / "requests.jsonl"
        settings = _SETTINGS | {"NEXA_REQUEST_LOG": request_log, "NEXA_MODEL_STORE": Path(folder) / "store"}
        try:
            with serving_tenants(TENANTS, _OPTIONS, settings=settings, log=arguments.log) as server:
                found, samples = asyncio.run(measure(server, arguments))
        except BenchError as error:
            sys.exit(f"soak: {error}")
        except KeyboardInterrupt:
            sys.exit(130)
        records = records_of(request_log)  # the server has ended, and with it what it still had to write
    found["records"] = len(records)
    found["broken"] += check_records(records, found["after"]["num_admitted"])
    report(found)
    if arguments.samples:
        arguments.samples.write_text("".join(json.dumps(asdict(one)) + "\n" for one in samples))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(1 if found["broken"] else 0)


if __name__ == "__main__":
    main()
