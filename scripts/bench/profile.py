"""Where a step's time goes, measured in this process: no server, no sockets, one thread.

Prints one table per question: what a step costs by its rows; how much of it is spent outside llama.cpp, and
how much of that choosing tokens, which is mostly numpy going over the logits; what 32 tenants cost where one
would do; and what admission costs with a thousand tenants. The clocks are in these times: about a
microsecond for each call of llama.cpp and each row.

    scripts/bench/profile MODEL [--threads 2] [--slots 8] [--ctx-size 16384] [--only rows,python,tenants]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nexa_runtime.config import load_settings
from nexa_runtime.engine import runner
from nexa_runtime.engine.generation_lane import GenerationRequest
from nexa_runtime.engine.model_engine import ModelEngine
from nexa_runtime.engine.sequence import TenantShare
from nexa_runtime.errors import NexaError
from nexa_runtime.llama import Sampler, SamplingParams
from nexa_runtime.llama.lib import C
from nexa_runtime.serving.loaded import LoadedModel
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.telemetry import configure_logging
from nexa_runtime.tenancy.admission import Admission
from nexa_runtime.tenancy.tenant import Limits, Tenant
from scripts.bench.common import MODEL_HELP, BenchError

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(seed=1)

NUM_STEPS = 40


class Clock:
    """The seconds spent in some functions, without those that an ``inner`` clock counts meanwhile."""

    def __init__(self, inner: "Clock | None" = None) -> None:
        self.seconds = 0.0
        self._inner = inner

    def watch(self, owner: object, name: str) -> None:
        """From now on count the calls of ``owner``'s function of this name."""
        function = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            start = self._now()
            try:
                return function(*arguments)
            finally:
                self.seconds += self._now() - start

        setattr(owner, name, call)

    def _now(self) -> float:
        return time.perf_counter() - (self._inner.seconds if self._inner else 0.0)


LLAMA = Clock()
CHOICE = Clock(inner=LLAMA)


def _start_clocks() -> None:
    for name in dir(C):
        if name.startswith("llama_") and hasattr(getattr(C, name), "argtypes"):
            LLAMA.watch(C, name)
    CHOICE.watch(Sampler, "sample")
    CHOICE.watch(runner, "sample_greedy")


class StepTimes(NamedTuple):
    """Milliseconds of a step: in all, outside llama.cpp, and of these choosing tokens."""

    total: float
    outside: float
    choosing: float


def medians(steps: list[StepTimes]) -> StepTimes:
    """Of each kind of time."""
    return StepTimes(*map(statistics.median, zip(*steps, strict=True)))


class Bench:
    """A loaded model whose steps are taken by hand."""

    def __init__(self, loaded: LoadedModel) -> None:
        assert loaded.engine.generation is not None
        self.engine: ModelEngine = loaded.engine
        self.lane = loaded.engine.generation
        self._keys = count(1)
        self._vocab_size = loaded.model.vocab.size
        self._random = np.random.default_rng(1)

    def submit(
        self, num_prompt: int, num_new: int, *, sampling: SamplingParams = GREEDY, tenant: str = "demo"
    ) -> None:
        """Put a sequence of random tokens in line."""
        prompt = self._random.integers(100, self._vocab_size - 100, num_prompt).astype(np.int32)
        request = GenerationRequest(prompt, num_new, sampling, TenantShare(tenant), tenant, ignore_eos=True)
        self.engine.submit(next(self._keys), request)

    def run(self) -> None:
        """Step until there is nothing to do."""
        while self.engine.step():
            self.engine.take_news()

    def run_until_decoding(self, num_rows: int) -> None:
        """Step until a step has so many decode rows and no prompt."""
        while True:
            before = self.lane.totals.num_prefill_rows, self.lane.totals.num_decode_rows
            if not self.engine.step():
                raise BenchError(f"{num_rows} answers never run at once: --slots or --ctx-size is too small")
            after = self.lane.totals.num_prefill_rows, self.lane.totals.num_decode_rows
            if after[0] == before[0] and after[1] - before[1] == num_rows:
                return

    def steps(self, num_steps: int = NUM_STEPS) -> list[StepTimes]:
        """Take so many steps."""
        times = []
        for _ in range(num_steps):
            in_llama, choosing, start = LLAMA.seconds, CHOICE.seconds, time.perf_counter()
            self.engine.step()
            self.engine.take_news()
            elapsed = time.perf_counter() - start
            outside = elapsed - (LLAMA.seconds - in_llama)
            times.append(StepTimes(elapsed * 1e3, outside * 1e3, (CHOICE.seconds - choosing) * 1e3))
        return times

    @contextmanager
    def decoding(self, num_rows: int, sampling: SamplingParams = GREEDY) -> Iterator[None]:
        """While inside, so many sequences generate."""
        for _ in range(num_rows):
            self.submit(16, NUM_STEPS + 8, sampling=sampling)
        self.run_until_decoding(num_rows)
        yield
        self.run()


def rows(bench: Bench) -> None:
    """What a step costs by its rows."""
    print("| rows of a step | ms | ms a row |\n|---|---|---|")
    for num_rows in (1, 2, 4, 8):
        with bench.decoding(num_rows):
            ms = medians(bench.steps()).total
        print(f"| {num_rows} decode | {ms:.1f} | {ms / num_rows:.1f} |")
    for num_rows in (16, 32, 40, 64, 128, 256, 512):
        times = []
        for _ in range(5):
            bench.submit(num_rows, 1)
            elapsed, computed = 0.0, 0
            while computed < num_rows:
                before = bench.lane.totals.num_prefill_rows
                elapsed += bench.steps(1)[0].total
                added = bench.lane.totals.num_prefill_rows - before
                if not added:
                    raise BenchError(f"a prompt of {num_rows} tokens does not fit: --ctx-size is too small")
                computed += added
            times.append(elapsed)
            bench.run()
        ms = statistics.median(times)
        print(f"| {num_rows} of a prompt | {ms:.1f} | {ms / num_rows:.2f} |")


def python(bench: Bench) -> None:
    """How much of a step is spent outside llama.cpp."""
    print("| step | ms | outside llama.cpp, ms | of these choosing tokens |\n|---|---|---|---|")
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        for num_rows in (1, 8):
            with bench.decoding(num_rows, sampling):
                ms = medians(bench.steps())
            print(f"| {num_rows} {name} | {ms.total:.2f} | {ms.outside:.3f} | {ms.choosing:.3f} |")


def tenants(bench: Bench) -> None:
    """Eight sequences run, 24 wait, 8 lie in the cache: of one tenant, and of 32."""
    print("| tenants | ms a step of 8 | outside llama.cpp, ms |\n|---|---|---|")
    totals: dict[int, list[float]] = {1: [], 32: []}
    for _ in range(5):
        for num_tenants, kept in totals.items():
            for index in range(8):
                bench.submit(64, 1, tenant=f"t{index % num_tenants}")
            bench.run()
            for index in range(32):
                bench.submit(16, NUM_STEPS + 8, tenant=f"t{index % num_tenants}")
            bench.run_until_decoding(8)
            ms = medians(bench.steps())
            kept.append(ms.total)
            print(f"| {num_tenants} | {ms.total:.2f} | {ms.outside:.3f} |")
            bench.run()
    ratio = statistics.median(totals[32]) / statistics.median(totals[1])
    print(f"\n32 tenants to one: {ratio:.3f}")


def admission() -> None:
    """1,000 tenants known, 100 active: letting a request in, reserving its tokens, settling it."""
    known = [
        Tenant(f"tenant-{index}", Limits(requests_per_minute=10**6), "bench", None) for index in range(1000)
    ]
    admission = Admission(max_queue=10**6)
    for tenant in known:
        admission.admit(tenant, slots=8).settle()
    open_tickets = [admission.admit(tenant, slots=8) for tenant in known[:100]]
    times = []
    for index in range(20_000):
        start = time.perf_counter()
        ticket = admission.admit(known[index % 100], slots=8)
        ticket.reserve(500)
        ticket.settle(prompt_tokens=300, completion_tokens=64)
        times.append(time.perf_counter() - start)
    for ticket in open_tickets:
        ticket.settle()
    times.sort()
    points = (times[len(times) * share // 100] * 1e3 for share in (50, 99))
    print("admission with 1,000 tenants, 100 active: p50 {:.4f} ms, p99 {:.4f} ms".format(*points))


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description="Where a step's time goes.")
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--ctx-size", type=int, default=16_384)
    parser.add_argument("--only", default="rows,python,tenants,admission")
    options = parser.parse_args()
    wanted = options.only.split(",")
    parts: dict[str, Callable[[Bench], None]] = {"rows": rows, "python": python, "tenants": tenants}
    if unknown := set(wanted) - {*parts, "admission"}:
        sys.exit(f"--only knows no {', '.join(sorted(unknown))}")
    overrides = {
        "NEXA_MODEL_ID": str(options.model),
        "NEXA_SLOTS": options.slots,
        "NEXA_CTX_SIZE": options.ctx_size,
    }
    if options.threads is not None:
        overrides["NEXA_THREADS"] = options.threads
    try:
        _profile(overrides, [part for name, part in parts.items() if name in wanted])
    except (BenchError, NexaError) as error:
        sys.exit(str(error))
    if "admission" in wanted:
        admission()


def _profile(overrides: dict[str, Any], parts: list[Callable[[Bench], None]]) -> None:
    settings = load_settings(overrides)
    configure_logging("ERROR")
    _start_clocks()
    loaded = open_pool(settings).default
    if loaded is None or loaded.engine.generation is None:
        raise BenchError(f"{overrides['NEXA_MODEL_ID']} is no model that generates text")
    for part in parts:
        part(Bench(loaded))
        print()
    loaded.close()


if __name__ == "__main__":
    main()
