"""What ten times too many requests cost those that are let in.

Starts a server of its own with the demo model and six tenants. The load: four clients for each slot, each of
which asks again as soon as it has its answer, so that all slots and three quarters of the queue are taken;
who is refused comes back when it was told to. It is measured alone, then together with an excess: so many
times the requests that the load alone gets answered, at even intervals, whatever becomes of them. Both come
from all tenants in turn, so that fairness between tenants helps nobody.

Times to first token are of requests that were let in, from the moment they were sent, waiting included.

    scripts/bench/overload [--seconds 60] [--times 10] [--json FILE]
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from scripts.bench.answers import FULL, problem_of_refusal
from scripts.bench.common import (
    BenchError,
    RunningServer,
    percentile,
    serving_tenants,
    settle,
    streamed,
    words,
)
from scripts.bench.process import Held, held_by, slope
from scripts.bench.raw import request_bytes, send

TENANTS = tuple(f"tenant-{letter}" for letter in "abcdef")

MAX_TTFT_RATIO = 2.5
MAX_GROWTH_MB_PER_MIN = 5.0
"""A minute is short: what the allocator keeps of a burst is in it."""

_SAMPLE_S = 1.0
_NUM_CELLS = 8192
"""Few, so that all of them are in memory by the end of the warm-up."""
_PATH = "/v1/chat/completions"


@dataclass
class Answer:
    """What one request got. ``problem``: why a client cannot go by it."""

    status: int
    ttft_s: float | None = None
    problem: str | None = None
    retry_after_s: float = 1.0


@dataclass
class Phase:
    """A stretch of time with its requests and what the server held meanwhile."""

    start: float = field(default_factory=time.perf_counter)
    end: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    held: list[tuple[float, Held]] = field(default_factory=list)


class Load:
    """The requests against one server."""

    def __init__(self, server: RunningServer, arguments: argparse.Namespace) -> None:
        self._server = server
        self._arguments = arguments
        self._random = Random(arguments.seed)
        self._tenants: Iterator[str] = itertools.cycle(TENANTS)
        self._seeds = itertools.count(1)

    async def run(self) -> tuple[Phase, Phase]:
        """The load alone, and with the excess."""
        async with self._clients() as phases:
            await self._measure(self._arguments.warmup, phases)
            alone = await self._measure(self._arguments.seconds, phases)
            rate = self._arguments.times * sum(one.status == 200 for one in alone.answers)
            rate /= alone.end - alone.start
            _say(f"the excess: {rate:.1f} requests a second")
            with_excess = await self._measure(self._arguments.seconds, phases, excess_rate=rate)
        async with httpx.AsyncClient(base_url=self._server.url) as client:
            await settle(client)
        return alone, with_excess

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[list[Phase]]:
        """The load runs inside; an answer belongs to the phase that was last when it was asked for."""
        phases = [Phase()]
        tasks = [asyncio.create_task(self._one_client(phases)) for _ in range(self._arguments.clients)]
        try:
            yield phases
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _one_client(self, phases: list[Phase]) -> None:
        while True:
            phase = phases[-1]
            answer = await self._ask()
            phase.answers.append(answer)
            if answer.status in FULL:
                await asyncio.sleep(answer.retry_after_s)

    async def _measure(self, seconds: float, phases: list[Phase], *, excess_rate: float = 0.0) -> Phase:
        phase = Phase()
        phases.append(phase)
        excess: set[asyncio.Task[None]] = set()

        async def one() -> None:
            phase.answers.append(await self._ask())

        due, sample_at = phase.start, phase.start
        while (now := time.perf_counter()) < phase.start + seconds:
            if now >= sample_at:
                phase.held.append((now - phase.start, held_by(self._server.pid)))
                sample_at += _SAMPLE_S
            while excess_rate and due <= now:
                task = asyncio.create_task(one())
                excess.add(task)
                task.add_done_callback(excess.discard)
                due += 1 / excess_rate
            await asyncio.sleep(0.005)
        phase.end = time.perf_counter()
        if excess:
            await asyncio.wait(excess)
        return phase

    async def _ask(self) -> Answer:
        messages = [{"role": "user", "content": words(self._random, self._arguments.words)}]
        body = streamed({"messages": messages}, self._arguments.max_tokens, seed=next(self._seeds))
        raw = await send(self._server.url, request_bytes(_PATH, body, next(self._tenants)))
        if raw.error is not None:
            return Answer(0, problem=f"no whole answer: {raw.error}")
        if raw.status != 200:
            problem = problem_of_refusal(raw.status, raw.headers, raw.body, _PATH)
            return Answer(raw.status, None, problem, int(raw.headers.get("retry-after-ms", 1000)) / 1e3)
        is_whole = raw.first_text_s is not None and b"data: [DONE]" in raw.body
        return Answer(200, raw.first_text_s, None if is_whole else "a stream just ended")


def summary(alone: Phase, with_excess: Phase) -> dict[str, Any]:
    """What was measured, and whether it is within the bounds."""
    found: dict[str, Any] = {"alone": _of(alone), "with_excess": _of(with_excess)}
    before, after = (found[name]["ttft_p95_ms"] for name in ("alone", "with_excess"))
    answers = alone.answers + with_excess.answers
    refusals = [one for one in answers if one.status not in (0, 200)]
    found["ttft_p95_ratio"] = round(after / before, 2) if before and after else None
    found["refusals"] = len(refusals)
    found["problems"] = Counter(one.problem for one in answers if one.problem)
    found["broken"] = _broken(found, {one.status for one in refusals})
    return found


def _broken(found: dict[str, Any], statuses: set[int]) -> list[str]:
    """The bounds that do not hold."""
    broken = []
    ratio = found["ttft_p95_ratio"]
    if ratio is None or ratio > MAX_TTFT_RATIO:
        broken.append(f"the p95 of the time to first token is {ratio} times as long")
    growth = found["with_excess"]["rss_mb_per_min"]
    if growth > MAX_GROWTH_MB_PER_MIN:
        broken.append(f"memory grows by {growth} MB a minute")
    if not found["refusals"]:
        broken.append("nothing was refused: the excess was none")
    if statuses - FULL:
        broken.append(f"refused with {sorted(statuses - FULL)}")
    return broken + [f"{count} times: {problem}" for problem, count in found["problems"].items()]


def _of(phase: Phase) -> dict[str, Any]:
    seconds = phase.end - phase.start
    ttft = [one.ttft_s for one in phase.answers if one.ttft_s is not None]
    tail = [(at / 60, one.rss_mb) for at, one in phase.held if at > seconds / 4]
    return {
        "requests": len(phase.answers),
        "answered": len(ttft),
        "statuses": dict(Counter(str(one.status) for one in phase.answers)),
        "answers_per_s": round(len(ttft) / seconds, 2),
        "ttft_p50_ms": percentile(ttft, 0.5),
        "ttft_p95_ms": percentile(ttft, 0.95),
        "rss_mb": phase.held[-1][1].rss_mb,
        "rss_mb_per_min": round(slope(tail), 2),
    }


_ROWS = {
    "requests": "requests",
    "answered": "answered",
    "answers_per_s": "answered, per second",
    "ttft_p50_ms": "time to first token, p50, ms",
    "ttft_p95_ms": "time to first token, p95, ms",
    "rss_mb": "memory at the end, MB",
    "rss_mb_per_min": "memory, MB/min after a quarter",
}


def report(found: dict[str, Any]) -> None:
    """Print the table and the verdict."""
    print(f"{'':34}{'load':>12}{'with excess':>14}")
    for name, label in _ROWS.items():
        print(f"{label:34}{found['alone'][name]!s:>12}{found['with_excess'][name]!s:>14}")
    print(f"p95 with the excess to p95 without: {found['ttft_p95_ratio']} (at most {MAX_TTFT_RATIO})")
    print(f"refusals: {found['refusals']}, statuses: {found['with_excess']['statuses']}")
    print("\n".join(f"BROKEN: {one}" for one in found["broken"]) or "all bounds hold")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    """Parse the arguments, run, print; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description="Measure what an excess of requests costs those let in.")
    parser.add_argument("--seconds", type=float, default=60, help="of each phase")
    parser.add_argument("--warmup", type=float, default=5, help="seconds of load before the first")
    parser.add_argument("--times", type=float, default=10, help="the excess, in times of what is answered")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--clients", type=int, help="of the load; unset: four per slot")
    parser.add_argument("--words", type=int, default=8, help="words of a prompt, of two to three tokens each")
    parser.add_argument("--max-tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="file for the server's log")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured there")
    arguments = parser.parse_args()
    arguments.clients = arguments.clients or 4 * arguments.slots
    try:
        options = {"--slots": arguments.slots, "--ctx-size": _NUM_CELLS}
        settings = {"NEXA_HOST_CACHE": 0}  # what is kept on purpose is not what is looked for
        tenants: dict[str, dict[str, object]] = {name: {} for name in TENANTS}
        with serving_tenants(tenants, options, settings=settings, log=arguments.log) as server:
            found = summary(*asyncio.run(Load(server, arguments).run()))
    except BenchError as error:
        sys.exit(f"overload: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    report(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(1 if found["broken"] else 0)


if __name__ == "__main__":
    main()
