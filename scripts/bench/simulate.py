"""What the scheduler makes of a load, without a model: its real decisions, and steps that take as long as was
measured on a processor.

Closed loop, greedy, no shared prefixes: prompts of one length, answers of one length. A policy can be judged
so in a second, where the same on a model takes minutes and the machine's own speed drifts; whatever looks
better here is then measured by ``race``. ``Costs`` are those of the 0.5B Qwen2 shape on two cores, fitted to
``profile``.

    scripts/bench/simulate [--clients 8] [--requests 16] [--prompt 277] [--new 64] [--itl-target 0.5]
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from nexa_runtime.engine.fair_queue import Accounts
from nexa_runtime.engine.kv_cache import KvCache
from nexa_runtime.engine.scheduler import Scheduler
from nexa_runtime.engine.sequence import Sequence, StepPlan, StepResult, TenantShare

TILE_ROWS = 64
NUM_CELLS = 32_768


@dataclass(frozen=True)
class Costs:
    """Milliseconds of a step: in any case, a row, a row that wants a token, and a row for each cell that the
    step's sequences have. From a tile of rows on other figures hold.
    """

    step: float = 28
    row: float = 4.25
    output: float = 3
    row_cell: float = 4.2e-4
    tiled_step: float = 45
    tiled_row: float = 3.95

    def step_s(self, plan: StepPlan) -> float:
        """Seconds that a plan takes."""
        num_rows = plan.num_rows
        num_outputs = sum(chunk.wants_token for chunk in plan.chunks)
        if num_rows >= TILE_ROWS:
            return (self.tiled_step + self.tiled_row * num_rows + self.output * num_outputs) / 1e3
        num_cells = sum(chunk.start for chunk in plan.chunks)
        attention = self.row_cell * num_rows * num_cells
        return (self.step + self.row * num_rows + self.output * num_outputs + attention) / 1e3


@dataclass
class Outcome:
    """What the clients saw, in seconds; and steps, rows and seconds of answers alone (``D``), prompts alone
    (``P``) and both.
    """

    total_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=dict)

    def count(self, plan: StepPlan, elapsed_s: float) -> None:
        """Count one step."""
        num_prompt_rows = plan.num_rows - plan.num_decode_rows
        kind = "D" * bool(plan.num_decode_rows) + "P" * bool(num_prompt_rows)
        counts = self.steps.setdefault(kind, [0, 0, 0.0])
        for place, amount in enumerate((1, plan.num_rows, elapsed_s)):
            counts[place] += amount

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{kind} {int(steps)} steps of {rows / steps:.1f} rows in {seconds:.1f} s"
            for kind, (steps, rows, seconds) in self.steps.items()
        )
        gap = f"gap p95 {np.percentile(self.gaps_s, 95):.2f} s, worst {max(self.gaps_s):.2f} s"
        return f"{self.total_s:.1f} s, TTFT p50 {statistics.median(self.first_s):.2f} s, {gap}; {shapes}"


def simulate(
    num_clients: int, num_requests: int, num_prompt: int, num_new: int, *, itl_target_s: float | None = None
) -> Outcome:
    """Each client asks again as soon as it has its answer."""
    scheduler = Scheduler(
        slots=8,
        step_tokens=512,
        kv_cache=KvCache(num_ids=32, num_cells=NUM_CELLS),
        accounts=Accounts(),
        itl_target_s=itl_target_s,
        tile_rows=TILE_ROWS,
    )
    outcome, costs = Outcome(), Costs()
    waiting = _sequences(num_requests, num_prompt, num_new)
    last_at: dict[int, float] = {}

    def ask(count: int) -> None:
        for sequence in itertools.islice(waiting, count):
            last_at[sequence.key] = outcome.total_s
            scheduler.add(sequence, outcome.total_s)

    ask(num_clients)
    while (plan := scheduler.schedule(outcome.total_s)) is not None:
        elapsed_s = costs.step_s(plan) if plan.chunks else 0.0
        outcome.total_s += elapsed_s
        outcome.count(plan, elapsed_s)
        tokens = {chunk.sequence.key: (1,) for chunk in plan.chunks if chunk.wants_token}
        advances = scheduler.commit(plan, StepResult(elapsed_s, tokens, {}))
        for advance in advances:
            key, is_first = advance.sequence.key, advance.sequence.num_new == 1
            (outcome.first_s if is_first else outcome.gaps_s).append(outcome.total_s - last_at[key])
            last_at[key] = outcome.total_s
        ask(sum(advance.finish_reason is not None for advance in advances))
    return outcome


def _sequences(count: int, num_prompt: int, num_new: int) -> Iterator[Sequence]:
    random = np.random.default_rng(1)
    for key in range(count):
        prompt = random.integers(1, 50_000, num_prompt).astype(np.int32)
        share = TenantShare("bench")
        yield Sequence(key, prompt, max_new_tokens=num_new, share=share, cache_namespace="bench")


def main() -> None:
    """Parse the arguments, simulate, print."""
    parser = argparse.ArgumentParser(description="The scheduler's decisions, with steps of measured length.")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=277, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer, at least 2")
    parser.add_argument("--itl-target", type=float, help="seconds, as NEXA_ITL_TARGET_MS; unset: auto")
    options = parser.parse_args()
    if min(options.clients, options.requests, options.prompt) < 1 or options.new < 2:
        parser.error("there must be something to do: one client, request and prompt token, two new tokens")
    if options.prompt + options.new > NUM_CELLS // 8:
        parser.error(f"a prompt and its answer may have {NUM_CELLS // 8} tokens")
    outcome = simulate(
        options.clients, options.requests, options.prompt, options.new, itl_target_s=options.itl_target
    )
    print(f"{options.requests * options.new / outcome.total_s:.1f} output tokens/s: {outcome}")


if __name__ == "__main__":
    main()
