"""The race: this server and llama-server of the same llama.cpp commit, side by side and interleaved.

Each row is one kind of work. A pair measures it on both servers, each started afresh for it, and the order
changes from pair to pair; what counts is the median of the pairs' ratios. Every measurement is appended to a
file of JSON lines as soon as it is there, with commit, model, threads and settings, so that a race goes on
where it was cut; the table on stdout is made from that file. Both servers get the same model, threads, slots,
cells, prompts and sampling, and a pair whose token counts differ by more than ``MAX_DIFFERENCE`` is marked.

    scripts/bench/build_llama_server
    scripts/bench/race --model qwen05.gguf [--rows one,four] [--pairs 5] [--results race.jsonl] [--table]
    scripts/bench/race --model qwen05.gguf --rows eight --setting NEXA_ITL_TARGET_MS=10000 --results l.jsonl
    scripts/bench/race --model llama8b.gguf --gpu [--pairs 5]
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from nexa_runtime.serving.library import DEMO_PATH
from scripts.bench.common import (
    MODEL_HELP,
    BenchError,
    Result,
    RunningServer,
    ask,
    check,
    clean_environment,
    free_port,
    nexa_command,
    percentile,
    running,
    streamed,
    until,
    words,
)
from scripts.bench.make_model import SHAPES, write_model

OURS, THEIRS = "nexa-runtime", "llama-server"

MAX_DIFFERENCE = 0.02
"""How far the token counts of a pair may lie apart: with sampling off by a token, a turn's prompt differs."""

Measures = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """A number of a row. ``target``: for our value divided by theirs, or for ours alone, if ``is_own``.

    ``is_at_limit``: both are at what the hardware gives, so that a twentieth more or less counts as level.
    """

    key: str
    title: str
    target: float
    is_higher_better: bool = True
    is_own: bool = False
    is_at_limit: bool = False

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio is as good as the target."""
        return ratio >= self.target if self.is_higher_better else ratio <= self.target


@dataclass(frozen=True)
class Race:
    """What a row's measurement gets: a client of the server under test, and what to draw prompts from."""

    client: httpx.AsyncClient
    random: random.Random

    def own_words(self, count: int) -> str:
        """Words that no other prompt of this measurement has."""
        return words(self.random, count)


@dataclass(frozen=True)
class Row:
    """One kind of work. ``model``: of the names in ``main``; ``cells``: KV cells of all slots together.
    ``is_for_gpu``: only raced with ``--gpu``, and only those are then.
    """

    name: str
    measure: Callable[[Race], Awaitable[Measures]]
    metrics: tuple[Metric, ...]
    model: str = "chat"
    slots: int = 8
    cells: int = 32_768
    is_for_gpu: bool = False


async def _closed_loop(
    race: Race, bodies: list[dict[str, Any]], num_clients: int
) -> tuple[list[Result], float]:
    """Each client asks again as soon as it has its answer; the results in order, and the seconds in all."""
    results = [Result() for _ in bodies]
    queue = iter(zip(bodies, results, strict=True))

    async def one_client() -> None:
        for body, result in queue:
            check(await ask(race.client, body, result=result))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(one_client())
    return results, time.perf_counter() - start


def _tokens(results: Iterable[Result]) -> Measures:
    """What both servers must have done alike."""
    listed = list(results)
    return {
        "prompt_tokens": sum(one.num_prompt for one in listed),
        "output_tokens": sum(one.num_new for one in listed),
    }


def _clients(num_clients: int, num_requests: int) -> Callable[[Race], Awaitable[Measures]]:
    """118-word prompts, 64 tokens each."""

    async def measure(race: Race) -> Measures:
        bodies = [streamed({"prompt": race.own_words(118)}, 64, seed=index) for index in range(num_requests)]
        results, elapsed_s = await _closed_loop(race, bodies, num_clients)
        tokens = _tokens(results)
        return tokens | {"tokens_per_s": tokens["output_tokens"] / elapsed_s}

    return measure


def _shared(num_system: int, num_requests: int) -> Callable[[Race], Awaitable[Measures]]:
    """Eight clients with one system prompt and 20 words of their own, 32 tokens each."""

    async def measure(race: Race) -> Measures:
        system = {"role": "system", "content": race.own_words(num_system)}
        bodies = [
            streamed({"messages": [system, {"role": "user", "content": race.own_words(20)}]}, 32, seed=index)
            for index in range(num_requests)
        ]
        results, elapsed_s = await _closed_loop(race, bodies, 8)
        tokens = _tokens(results)
        return tokens | {
            "total_s": elapsed_s,
            "tokens_per_s": tokens["output_tokens"] / elapsed_s,
            "ttft_s": statistics.median(one.moments[0] for one in results[:8]),
        }

    return measure


async def _turns(race: Race) -> Measures:
    """Twelve conversations of four turns at once: 40 words each time, answers of 48 tokens, greedy so that
    both servers have the same history.
    """
    results: list[Result] = []
    questions = [[race.own_words(40) for _ in range(4)] for _ in range(12)]

    async def converse(index: int) -> None:
        messages: list[dict[str, str]] = []
        for question in questions[index]:
            messages.append({"role": "user", "content": question})
            body = streamed({"messages": messages}, 48, seed=index, temperature=0)
            result = check(await ask(race.client, body))
            results.append(result)
            messages.append({"role": "assistant", "content": result.text})

    start = time.perf_counter()
    await asyncio.gather(*(converse(index) for index in range(12)))
    return _tokens(results) | {"total_s": time.perf_counter() - start}


async def _token_ids(race: Race, letters: str) -> list[int]:
    """The token of each letter."""
    ids = []
    for letter in letters:
        response = await race.client.post("/tokenize", json={"content": letter, "add_special": False})
        response.raise_for_status()
        ids.append(response.json()["tokens"][-1])
    return ids


async def _gap(race: Race) -> Measures:
    """The longest time between two tokens of a running stream while an 1,800-word prompt is computed. The
    stream is of letters: a token that is a part of a character would have no text, and not be seen.
    """
    runner = Result()
    body = streamed({"prompt": race.own_words(20)}, 1500, seed=1)
    body["logit_bias"] = dict.fromkeys(map(str, await _token_ids(race, string.ascii_lowercase)), 100)
    stream = asyncio.create_task(ask(race.client, body, result=runner))
    await until(lambda: len(runner.moments) >= 10)
    begin = time.perf_counter() - runner.sent_at
    prompt = check(await ask(race.client, streamed({"prompt": race.own_words(1800)}, 2, seed=2)))
    end = time.perf_counter() - runner.sent_at
    if stream.done():
        raise BenchError("the running stream ended before the prompt was computed")
    # The piece that the prompt held up may still have to come.
    await until(lambda: runner.moments[-1] >= end)
    stream.cancel()
    await asyncio.wait([stream])
    moments = [moment for moment in runner.moments if moment >= begin]
    gaps = [after - before for before, after in zip([begin, *moments], moments, strict=False)]
    return {"prompt_tokens": prompt.num_prompt, "gap_s": max(gaps)}


_FLOOD_S = 60.0


async def _flood(race: Race) -> Measures:
    """Sixteen clients of one tenant for a minute (200 words, 64 tokens), and meanwhile another's short
    questions, one after the other.
    """
    flood: list[Result] = []
    begin = time.perf_counter()

    async def one_client(seed: int) -> None:
        while True:
            flood.append(result := Result())
            body = streamed({"prompt": race.own_words(200)}, 64, seed=seed)
            check(await ask(race.client, body, tenant="flood", result=result))

    tasks = [asyncio.create_task(one_client(index)) for index in range(16)]
    await asyncio.sleep(10)
    quiet: list[float] = []
    while not quiet or time.perf_counter() - begin < 10 + _FLOOD_S:
        body = streamed({"prompt": race.own_words(20)}, 8, seed=len(quiet))
        quiet.append(check(await ask(race.client, body, tenant="quiet")).moments[0])
        await asyncio.sleep(1)
    end = time.perf_counter()
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, BenchError):
            raise outcome
    num_new = sum(begin + 10 <= one.sent_at + moment < end for one in flood for moment in one.moments)
    ttft = percentile(quiet, 0.95)
    assert ttft is not None
    return {"quiet_ttft_ms": ttft, "flood_per_s": num_new / (end - begin - 10), "questions": len(quiet)}


_ORDERS = {
    "type": "object",
    "properties": {
        "orders": {
            "type": "array",
            "minItems": 20,
            "maxItems": 20,
            "items": {
                "type": "object",
                "properties": {
                    "product": {"type": "string", "maxLength": 20},
                    "quantity": {"type": "integer", "minimum": 1, "maximum": 500},
                    "status": {"enum": ["new", "paid", "sent", "returned"]},
                    "is_gift": {"type": "boolean"},
                },
                "required": ["product", "quantity", "status", "is_gift"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["orders"],
    "additionalProperties": False,
}
"""JSON of this schema is longer than any answer of the row, so that both servers make as many tokens."""


async def _json(race: Race) -> Measures:
    """Eight clients, 20 words, 128 tokens: JSON of one schema, and free text, in turns of eight requests."""
    form = {"type": "json_schema", "json_schema": {"name": "orders", "schema": _ORDERS, "strict": True}}
    seconds = {"json": 0.0, "plain": 0.0}
    seen: dict[str, list[Result]] = {"json": [], "plain": []}
    for index in range(6):
        kind = ("plain", "json")[index % 2]
        extra = {"response_format": form} if kind == "json" else {}
        bodies = [
            streamed(
                {"messages": [{"role": "user", "content": race.own_words(20)}], **extra}, 128, seed=number
            )
            for number in range(8)
        ]
        results, elapsed_s = await _closed_loop(race, bodies, 8)
        seen[kind] += results
        seconds[kind] += elapsed_s
    speeds = {kind: _tokens(seen[kind])["output_tokens"] / seconds[kind] for kind in seen}
    return _tokens(seen["json"]) | {
        "tokens_per_s": speeds["json"],
        "plain_per_s": speeds["plain"],
        "json_to_plain": speeds["json"] / speeds["plain"],
    }


async def _embed(race: Race) -> Measures:
    """64 texts of 12 words in one request; the median of nine after one to warm up."""
    times = []
    for _ in range(10):
        inputs = [race.own_words(12) for _ in range(64)]
        start = time.perf_counter()
        response = await race.client.post("/v1/embeddings", json={"input": inputs})
        response.raise_for_status()
        times.append(time.perf_counter() - start)
        assert len(response.json()["data"]) == 64
    return {
        "prompt_tokens": response.json()["usage"]["prompt_tokens"],
        "texts_per_s": 64 / statistics.median(times[1:]),
    }


async def _overhead(race: Race) -> Measures:
    """64 clients streaming 128 tokens from a model that costs next to nothing, twice each."""
    bodies = [streamed({"prompt": race.own_words(4)}, 128, seed=index) for index in range(128)]
    results, elapsed_s = await _closed_loop(race, bodies, 64)
    tokens = _tokens(results)
    return tokens | {"tokens_per_s": tokens["output_tokens"] / elapsed_s}


def _per_s(title: str, target: float, *, is_at_limit: bool = False) -> tuple[Metric, ...]:
    return (Metric("tokens_per_s", f"{title}: output tokens/s", target, is_at_limit=is_at_limit),)


def _lower(key: str, title: str, target: float) -> Metric:
    return Metric(key, title, target, is_higher_better=False)


ROWS = [
    Row("one", _clients(1, 4), _per_s("1 client, 118 words, 64 tokens", 1.0, is_at_limit=True)),
    Row("four", _clients(4, 8), _per_s("4 clients, the same", 1.0, is_at_limit=True)),
    Row("eight", _clients(8, 16), _per_s("8 clients, the same", 1.0, is_at_limit=True)),
    Row("burst", _shared(1000, 8), (_lower("total_s", "8 requests, one 1,000-word system prompt: s", 0.30),)),
    Row(
        "shared",
        _shared(500, 16),
        (
            Metric("tokens_per_s", "16 requests, one 500-word system prompt: output tokens/s", 2.2),
            _lower("ttft_s", "the same: median TTFT of the first eight, s", 0.33),
        ),
    ),
    Row("turns", _turns, (_lower("total_s", "12 conversations of 4 turns on 4 slots: s", 1.0),), slots=4),
    Row("gap", _gap, (_lower("gap_s", "worst gap of a stream beside an 1,800-word prompt: s", 0.05),)),
    Row(
        "flood",
        _flood,
        (
            _lower("quiet_ttft_ms", "quiet tenant under a flood of 16: TTFT p95, ms", 0.05),
            Metric("flood_per_s", "the flood's own output tokens/s", 0.9),
        ),
    ),
    Row(
        "json",
        _json,
        (
            *_per_s("8 clients, JSON of a schema, 20 words, 128 tokens", 2.0),
            Metric("json_to_plain", "the same: JSON beside free text, ours alone", 0.95, is_own=True),
        ),
    ),
    Row("embed", _embed, (Metric("texts_per_s", "64 short texts embedded: texts/s", 1.0),), model="embed"),
    Row("overhead", _overhead, _per_s("64 clients on the demo model", 0.8), model="demo", slots=64),
    *(
        Row(
            f"gpu{clients}",
            _clients(clients, max(4 * clients, 16)),
            _per_s(f"GPU, {clients} client{'s' * (clients > 1)}, 118 words, 64 tokens", target),
            slots=64,
            is_for_gpu=True,
        )
        for clients, target in ((1, 1.0), (8, 1.0), (32, 1.3), (64, 1.3))
    ),
]


_ROWS_BY_NAME = {row.name: row for row in ROWS}


@contextmanager
def _server(
    name: str, row: Row, models: dict[str, Path], options: argparse.Namespace
) -> Iterator[RunningServer]:
    """One of the two, with the row's model."""
    port = free_port()
    log = Path(tempfile.gettempdir()) / f"race-{row.name}-{name}.log"
    model = models[row.model]
    env = clean_environment()
    if name == OURS:
        flags = {
            "--model": model,
            "--slots": row.slots,
            "--ctx-size": row.cells,
            "--threads": options.threads,
        }
        command = nexa_command(port, flags)
        ready_path = "/readyz"
        env |= {"TENANT_MODE": "multi", "NEXA_TENANTS_FILE": str(_tenants_file())}
        env |= dict(setting.split("=", 1) for setting in options.setting)
    else:
        command = [
            str(options.llama_server), "--host", "127.0.0.1", "--port", str(port), "--model", str(model),
            "--threads", str(options.threads), "--threads-batch", str(options.threads),
            "--parallel", str(row.slots), "--ctx-size", str(row.cells), *options.llama_flags.split(),
        ]  # fmt: skip
        if row.model == "embed":
            command += ["--embedding", "--pooling", "mean"]
        if row.is_for_gpu:
            command += ["--n-gpu-layers", "999"]
        ready_path = "/health"
    with running(command, port, ready_path, log, env=env, timeout_s=180) as server:
        yield server


def _tenants_file() -> Path:
    path = Path(tempfile.gettempdir()) / "race-tenants.yaml"
    path.write_text(json.dumps({"tenants": {"demo": {}, "flood": {}, "quiet": {}}}))
    return path


def _peak_bytes(pid: int) -> int:
    """The most main memory that a process has had, the model file's pages with it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"the kernel says nothing of the memory of process {pid}")


def _measure(
    name: str, row: Row, seed: int, models: dict[str, Path], options: argparse.Namespace
) -> Measures:
    async def run(server: RunningServer) -> Measures:
        # A connection each: llama-server closes idle ones just when a client may use them again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=server.url,
            headers={"X-Tenant-Id": "demo"},
            timeout=900,
            limits=limits,
            trust_env=False,
        ) as client:
            return await row.measure(Race(client, random.Random(seed)))

    with _server(name, row, models, options) as server:
        measures = asyncio.run(run(server))
        return measures | {"start_s": server.start_s, "peak_bytes": float(_peak_bytes(server.pid))}


def read_results(path: Path) -> list[dict[str, Any]]:
    """What was measured so far. A last line without an end was cut, and does not count. Raises
    ``BenchError``.
    """
    results = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            row = _ROWS_BY_NAME[entry["row"]]
            keys = {"start_s", "peak_bytes", *(metric.key for metric in row.metrics)}
            is_result = isinstance(entry["pair"], int) and entry["server"] in (OURS, THEIRS)
            if not is_result or not keys <= entry["measures"].keys():
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BenchError(f"line {number} of {path} is no result of a race") from None
        results.append(entry)
    return results


def check_same_race(results: list[dict[str, Any]], about: Mapping[str, object]) -> None:
    """Raises ``BenchError`` where results say of themselves that they are of another race."""
    for number, one in enumerate(results, 1):
        other = {key: one[key] for key, value in about.items() if one.get(key, value) != value}
        if other:
            raise BenchError(f"result {number} is of another race ({other}); name another file")


def append_result(path: Path, entry: dict[str, Any]) -> None:
    """Add a result, in the place of a line that was cut."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    with path.open("ab") as file:
        file.truncate(len(whole) + 1 if whole else 0)
        file.write(json.dumps(entry).encode() + b"\n")


def _pairs(results: list[dict[str, Any]], row: str) -> list[tuple[Measures, Measures]]:
    """Ours and theirs of each pair that is complete."""
    by_pair: dict[int, dict[str, Measures]] = {}
    for one in results:
        if one["row"] == row:
            by_pair.setdefault(one["pair"], {})[one["server"]] = one["measures"]
    return [(both[OURS], both[THEIRS]) for _, both in sorted(by_pair.items()) if len(both) == 2]


def _is_same_work(ours: Measures, theirs: Measures) -> bool:
    return all(
        abs(ours.get(key, 0.0) - theirs.get(key, 0.0)) <= MAX_DIFFERENCE * theirs.get(key, 0.0)
        for key in ("prompt_tokens", "output_tokens")
        if key in ours or key in theirs
    )


def table(results: list[dict[str, Any]]) -> str:
    """All that was measured, as Markdown."""
    lines = ["| work | ours | llama-server | ratio (pairs) | target | |", "|---|---|---|---|---|---|"]

    def add(title: str, ours: float, theirs: float, ratios: list[float], goal: str, verdict: str) -> None:
        digits = 3 if min(ratios) < 0.1 else 2  # a target of 0.05 is missed by 0.051
        median, low, high = (f"{of(ratios):.{digits}f}" for of in (statistics.median, min, max))
        spread = f"{median} ({len(ratios)}: {low} to {high})"
        lines.append(f"| {title} | {ours:,.4g} | {theirs:,.4g} | {spread} | {goal} | {verdict} |")

    for row in ROWS:
        pairs = _pairs(results, row.name)
        if not pairs:
            continue
        for metric in row.metrics:
            ours, theirs = ([pair[side][metric.key] for pair in pairs] for side in (0, 1))
            ratios = ours if metric.is_own else [a / b for a, b in zip(ours, theirs, strict=True)]
            ratio = statistics.median(ratios)
            verdict = "met" if metric.is_met(ratio) else "**not met**"
            if metric.is_at_limit and not metric.is_met(ratio) and 0.95 <= ratio <= 1.05:
                verdict = "level"
            if not all(_is_same_work(*pair) for pair in pairs):
                verdict += ", unequal work"
            goal = f"{'≥' if metric.is_higher_better else '≤'} {metric.target:.2f}"
            add(metric.title, statistics.median(ours), statistics.median(theirs), ratios, goal, verdict)
    if pairs := _pairs(results, "eight"):
        for key, title, scale, allowed in (
            ("peak_bytes", "peak memory after the row of 8 clients: MB", 1e6, 150.0),
            ("start_s", "start to ready, warm file cache: s", 1.0, 1.5),
        ):
            ours, theirs = ([pair[side][key] / scale for pair in pairs] for side in (0, 1))
            more = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
            verdict = "met" if more <= allowed else "**not met**"
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            add(
                title, statistics.median(ours), statistics.median(theirs), ratios, f"≤ + {allowed:g}", verdict
            )
    return "\n".join(lines)


def _commit() -> str | None:
    """Of our own code; "-dirty" behind it where it was changed since. None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _default_llama_server() -> Path | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = cache.glob("nexa-runtime/llama-server/*/bin/llama-server")
    return next(iter(sorted(found, reverse=True)), None)


def _parse() -> tuple[list[Row], argparse.Namespace]:
    """The rows that are asked for, and the options."""
    parser = argparse.ArgumentParser(description="Race this server against llama-server.")
    parser.add_argument("--model", type=Path, help=MODEL_HELP)
    parser.add_argument("--llama-server", type=Path, default=_default_llama_server())
    parser.add_argument("--llama-flags", default="--kv-unified", help="further flags for llama-server")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="further settings of our server"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="", help="names, by commas; unset: all")
    parser.add_argument("--gpu", action="store_true", help="race the rows for a GPU, all layers on it")
    parser.add_argument("--pairs", type=int, default=5, help="per row, with those the results file has")
    parser.add_argument("--results", type=Path, default=Path("race.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if any(not setting.partition("=")[0] or "=" not in setting for setting in options.setting):
        parser.error("--setting is like NEXA_ITL_TARGET_MS=1000")
    if options.pairs < 1 or options.threads < 1:
        parser.error("--pairs and --threads are at least 1")
    if options.results.is_dir() or not options.results.parent.is_dir():
        parser.error(f"--results is a file in a folder that exists, and {options.results} is not")
    if options.table and not options.results.exists():
        parser.error(f"there are no results in {options.results}")
    rows = [row for row in ROWS if row.is_for_gpu == options.gpu]
    names = options.rows.split(",") if options.rows else [row.name for row in rows]
    if unknown := set(names) - {row.name for row in rows}:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; rows: {', '.join(r.name for r in rows)}")
    return [row for row in rows if row.name in names], options


def main() -> None:
    """Parse the arguments, race, print the table."""
    rows, options = _parse()
    was_cut = False
    try:
        if not options.table:
            _race(rows, options)
    except* BenchError as errors:
        sys.exit(str(errors.exceptions[0]))
    except* KeyboardInterrupt:
        was_cut = True
        print("cut short; the same command goes on", file=sys.stderr)
    try:
        print(table(read_results(options.results)))
    except BenchError as error:
        sys.exit(str(error))
    if was_cut:
        sys.exit(130)


def _race(rows: list[Row], options: argparse.Namespace) -> None:
    if options.llama_server is None or not os.access(options.llama_server, os.X_OK):
        raise BenchError("there is no llama-server; scripts/bench/build_llama_server builds one")
    if options.model is None or not options.model.is_file():
        raise BenchError(f"--model names no file; it wants {MODEL_HELP}")
    about = {
        "chat_model": [options.model.name, options.model.stat().st_size],
        "threads": options.threads,
        "settings": sorted(options.setting),
        "llama_server": options.llama_server.parents[1].name,
        "llama_flags": options.llama_flags,
    }
    check_same_race(read_results(options.results), about)
    with tempfile.TemporaryDirectory(prefix="race-") as folder:
        models = {"chat": options.model, "demo": DEMO_PATH, "embed": Path(folder) / "embed.gguf"}
        if any(row.model == "embed" for row in rows):
            write_model(SHAPES["bert-mini"], DEMO_PATH, models["embed"])
        for pair in range(options.pairs):
            for row in rows:
                for name in (OURS, THEIRS) if pair % 2 == 0 else (THEIRS, OURS):
                    done = read_results(options.results)
                    if any(
                        (one["row"], one["pair"], one["server"]) == (row.name, pair, name) for one in done
                    ):
                        continue
                    commit = _commit()
                    measures = _measure(name, row, 1000 * pair, models, options)
                    print(f"{row.name} {pair} {name}: {_brief(measures)}", file=sys.stderr)
                    entry = {"row": row.name, "pair": pair, "server": name, "measures": measures}
                    entry |= about | {"commit": commit}
                    append_result(options.results, entry)


def _brief(measures: Measures) -> str:
    return " ".join(f"{key}={value:.5g}" for key, value in measures.items())


if __name__ == "__main__":
    main()
