"""What a flood of one tenant costs another: tenant b's time to first token, and tenant a's tokens/s.

Starts a server of its own with tenants a and b. Each round measures b alone (short chats one after another,
with a pause), a alone (clients that ask again as soon as they have their answer, every prompt new), and both;
the flood runs on between the last two, whose order alternates from round to round. What was measured is
printed as a table on stdout, next to the targets; the progress goes to stderr.

Tokens are counted inside each window: an answer's chunks when they come, at the tokens per chunk that
``usage`` says; a prompt as a whole at its first chunk, so that one more or less lies within the error.

    scripts/bench/noisy_neighbour MODEL [--threads 2] [--rounds 3] [--window 60] [--json FILE]
"""

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from scripts.bench.common import (
    BenchError,
    Result,
    add_server_arguments,
    ask,
    check,
    mean,
    percentile,
    serving,
    settle,
    streamed,
    words,
)

Summary = dict[str, Any]

MAX_TTFT_RATIO = 4.0
MIN_THROUGHPUT_RATIO = 0.85

POINTS = {"p50": 0.5, "p95": 0.95}

MAX_STRETCH = 4
"""How many times its length a window with b may last, so that b's requests are enough."""


@dataclass
class Window:
    """A stretch of time in which tenant a was measured; moments of ``time.perf_counter``."""

    has_b: bool
    start: float
    end: float


@dataclass
class Measured:
    """Everything of all rounds; b's requests ``alone`` and under ``flood``."""

    alone: list[Result] = field(default_factory=list)
    under_flood: list[Result] = field(default_factory=list)
    flood: list[Result] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)


@dataclass(frozen=True)
class Speed:
    """Tenant a's tokens a second; ``work`` counts prompts and answers."""

    output: float
    work: float


class Bench:
    """The requests of both tenants against one server."""

    def __init__(self, client: httpx.AsyncClient, arguments: argparse.Namespace) -> None:
        self.measured = Measured()
        self._client = client
        self._arguments = arguments
        self._random = random.Random(arguments.seed)

    async def run(self) -> None:
        """All rounds."""
        await self._ask_b()  # the first request of a process is slower than all others
        for index in range(self._arguments.rounds):
            _say(f"round {index + 1} of {self._arguments.rounds}: b alone")
            await self._ask_b_until(0.0, self.measured.alone)
            async with self._flood():
                _say(f"the flood warms up for {self._arguments.warmup:g} s")
                await asyncio.sleep(self._arguments.warmup)
                for has_b in (False, True) if index % 2 == 0 else (True, False):
                    await self._measure_window(has_b)
            await settle(self._client)

    async def _measure_window(self, has_b: bool) -> None:
        _say("a and b" if has_b else "a alone")
        start = time.perf_counter()
        if has_b:
            await self._ask_b_until(start + self._arguments.window, self.measured.under_flood)
        else:
            await asyncio.sleep(self._arguments.window)
        self.measured.windows.append(Window(has_b, start, time.perf_counter()))

    async def _ask_b_until(self, end: float, results: list[Result]) -> None:
        """Until ``end`` is over and there are enough."""
        latest = time.perf_counter() + MAX_STRETCH * self._arguments.window
        num_done = 0
        while time.perf_counter() < end or num_done < self._arguments.b_requests:
            if time.perf_counter() > latest:
                raise BenchError(f"tenant b had only {num_done} answers in {MAX_STRETCH} windows")
            results.append(await self._ask_b())
            num_done += 1
            await asyncio.sleep(self._arguments.pause)

    async def _ask_b(self) -> Result:
        messages = [{"role": "user", "content": words(self._random, self._arguments.b_words)}]
        body = streamed({"messages": messages}, self._arguments.b_tokens, seed=1)
        return check(await ask(self._client, body, tenant="b"))

    @asynccontextmanager
    async def _flood(self) -> AsyncIterator[None]:
        """Tenant a's clients run inside the block."""
        try:
            async with asyncio.TaskGroup() as group:
                clients = [group.create_task(self._flood_client()) for _ in range(self._arguments.clients)]
                try:
                    yield
                finally:
                    for client in clients:
                        client.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _flood_client(self) -> None:
        # The first answers differ in length, so that the clients do not ask in step.
        num_tokens = self._random.randint(1, self._arguments.a_tokens)
        while True:
            prompt = {"prompt": words(self._random, self._arguments.a_words)}
            result = Result()
            self.measured.flood.append(result)
            check(await ask(self._client, streamed(prompt, num_tokens, seed=1), tenant="a", result=result))
            num_tokens = self._arguments.a_tokens


async def measure(url: str, arguments: argparse.Namespace) -> Measured:
    """Everything, against the server at ``url``."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=arguments.timeout, limits=limits) as client:
        bench = Bench(client, arguments)
        await bench.run()
        return bench.measured


def speed(flood: list[Result], windows: list[Window]) -> Speed:
    """What tenant a got in these windows together."""
    whole = [result for result in flood if result.is_whole]
    num_chunks = sum(len(result.moments) for result in whole)
    if not num_chunks or not windows:
        raise BenchError("tenant a had no whole answer: the windows are too short")
    tokens_per_chunk = sum(result.num_new for result in whole) / num_chunks
    tokens_per_prompt = mean(result.num_prompt - result.num_cached for result in whole)
    output = _count(_chunks(flood), windows) * tokens_per_chunk
    prompts = (
        _count((one.sent_at + one.moments[0] for one in flood if one.moments), windows) * tokens_per_prompt
    )
    seconds = sum(window.end - window.start for window in windows)
    return Speed(output / seconds, (output + prompts) / seconds)


def _chunks(flood: list[Result]) -> Iterator[float]:
    return (result.sent_at + moment for result in flood for moment in result.moments)


def _count(moments: Iterable[float], windows: list[Window]) -> int:
    return sum(window.start <= moment < window.end for moment in moments for window in windows)


def summary(measured: Measured) -> Summary:
    """What was measured, times in milliseconds."""
    alone, flooded = _ttft(measured.alone), _ttft(measured.under_flood)
    a_alone, a_with_b = (
        speed(measured.flood, [window for window in measured.windows if window.has_b is has_b])
        for has_b in (False, True)
    )
    whole = [result for result in measured.flood if result.is_whole]
    return {
        "b_requests": {"alone": len(alone), "flood": len(flooded)},
        "b_prompt_tokens": round(mean(result.num_prompt for result in measured.alone), 1),
        "b_ttft_ms": {"alone": _percentiles(alone), "flood": _percentiles(flooded)},
        "b_ttft_ratio": {
            name: _ratio(_percentiles(flooded)[name], _percentiles(alone)[name]) for name in POINTS
        },
        "a_requests": len(whole),
        "a_prompt_tokens": round(mean(result.num_prompt for result in whole), 1),
        "a_cached_tokens": sum(result.num_cached for result in whole),
        "a_tokens_per_s": {"alone": asdict(a_alone), "with_b": asdict(a_with_b)},
        "a_ratio": {"output": a_with_b.output / a_alone.output, "work": a_with_b.work / a_alone.work},
        "a_windows": [
            asdict(window) | asdict(speed(measured.flood, [window])) for window in measured.windows
        ],
        "b_ttft_all_ms": {"alone": _milliseconds(alone), "flood": _milliseconds(flooded)},
    }


def _ttft(results: list[Result]) -> list[float]:
    return [result.moments[0] for result in results if result.moments]


def _milliseconds(seconds: list[float]) -> list[float]:
    return [round(1e3 * one, 1) for one in seconds]


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        raise BenchError("tenant b's answers had no text")
    return {name: percentile(seconds, share) or 0.0 for name, share in POINTS.items()}


def _ratio(value: float, base: float) -> float:
    return value / base if base else math.inf


def report(found: Summary) -> None:
    """Print the table."""
    counts, ttft, tokens = found["b_requests"], found["b_ttft_ms"], found["a_tokens_per_s"]
    print(f"{'':32}{'alone':>10}{'together':>10}{'ratio':>8}  target")
    print(f"{'b: requests':32}{counts['alone']:>10}{counts['flood']:>10}")
    for name, ratio in found["b_ttft_ratio"].items():
        target = _verdict(f"<= {MAX_TTFT_RATIO:g}", ratio <= MAX_TTFT_RATIO) if name == "p95" else ""
        label = f"b: time to first token, {name}, ms"
        _print_row(label, ttft["alone"][name], ttft["flood"][name], ratio, target)
    for name, ratio in found["a_ratio"].items():
        target = _verdict(f">= {MIN_THROUGHPUT_RATIO:g}", ratio >= MIN_THROUGHPUT_RATIO)
        label = "a: output tokens/s" if name == "output" else "a: prompt + output tokens/s"
        _print_row(label, tokens["alone"][name], tokens["with_b"][name], ratio, target)
    print(f"prompts of {found['a_prompt_tokens']:g} tokens (a) and {found['b_prompt_tokens']:g} (b)")


def _print_row(label: str, alone: float, together: float, ratio: float, target: str) -> None:
    print(f"{label:32}{alone:>10.1f}{together:>10.1f}{ratio:>8.2f}  {target}".rstrip())


def _verdict(target: str, is_met: bool) -> str:
    return f"{target}  {'met' if is_met else 'MISSED'}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what a flood of one tenant costs another.")
    add_server_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=float, default=60, help="seconds of each measurement of tenant a")
    parser.add_argument(
        "--warmup", type=float, default=30, help="seconds of flood before the first of a round"
    )
    parser.add_argument("--clients", type=int, default=16, help="of tenant a")
    parser.add_argument(
        "--a-words", type=int, default=200, help="words of a prompt, of two to three tokens each"
    )
    parser.add_argument("--a-tokens", type=int, default=64, help="output tokens of an answer")
    parser.add_argument("--b-requests", type=int, default=8, help="at least so many in each phase of a round")
    parser.add_argument("--b-words", type=int, default=20)
    parser.add_argument("--b-tokens", type=int, default=8)
    parser.add_argument("--pause", type=float, default=2, help="seconds after each of tenant b's answers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured there")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments, run, print."""
    arguments = _arguments()
    try:
        with serving(arguments, ("a", "b")) as url:
            found = summary(asyncio.run(measure(url, arguments)))
    except BenchError as error:
        sys.exit(f"noisy_neighbour: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    report(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
