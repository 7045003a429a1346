"""Whether one tenant ever gets cached tokens of another, by ``usage`` and by time to first token.

Starts a server of its own with tenants a and b. Each repetition has a prompt of its own: a sends it, a sends
it again (cached, so fast), then b sends the very same (computed anew, so as slow as the first). Prints
medians on stdout; the exit status is 1 when b got a cached token, or when a got none and nothing is shown.

    scripts/bench/isolation MODEL [--threads 2] [--repetitions 5] [--words 260]
"""

import argparse
import asyncio
import random
import statistics
import string
import sys

import httpx

from scripts.bench.common import (
    BenchError,
    Result,
    add_server_arguments,
    ask,
    check,
    serving,
    settle,
    streamed,
    words,
)

STEPS = {"first": "a", "again": "a", "other tenant": "b"}
"""Who sends the prompt, in this order."""

FIRST_WORDS = string.ascii_uppercase
"""One begins each prompt: two prompts with the same first token would share it inside a tenant."""

MAX_TOKENS = 8


async def measure(url: str, arguments: argparse.Namespace) -> dict[str, list[Result]]:
    """The requests of each step."""
    random_ = random.Random(arguments.seed)
    results: dict[str, list[Result]] = {step: [] for step in STEPS}
    async with httpx.AsyncClient(base_url=url, timeout=arguments.timeout) as client:
        # The first request of a process is slower than all others.
        check(
            await ask(
                client, streamed({"prompt": words(random_, arguments.words)}, MAX_TOKENS, seed=0), tenant="a"
            )
        )
        for repetition in range(arguments.repetitions):
            prompt = f"{FIRST_WORDS[repetition]} {words(random_, arguments.words)}"
            body = streamed({"prompt": prompt}, MAX_TOKENS, seed=repetition)
            for step, tenant in STEPS.items():
                results[step].append(check(await ask(client, body, tenant=tenant)))
                await settle(client)
    return results


def report(results: dict[str, list[Result]]) -> None:
    """Print the table."""
    print(
        f"{'':14}{'tenant':>8}{'prompt tokens':>16}{'cached tokens':>24}{'TTFT median':>14}{'of first':>10}"
    )
    medians: dict[str, float] = {}
    for step, ones in results.items():
        medians[step] = statistics.median(one.moments[0] for one in ones if one.moments)
        sizes = _range([one.num_prompt for one in ones])
        cached = ", ".join(str(one.num_cached) for one in ones)
        share = medians[step] / medians["first"]
        print(f"{step:14}{STEPS[step]:>8}{sizes:>16}{cached:>24}{medians[step] * 1e3:>11.0f} ms{share:>9.0%}")


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description="Show that no tenant gets cached tokens of another.")
    add_server_arguments(parser)
    parser.add_argument(
        "--repetitions", type=int, default=5, choices=range(1, len(FIRST_WORDS) + 1), metavar="N"
    )
    parser.add_argument(
        "--words", type=int, default=260, help="words of each prompt, of two to three tokens each"
    )
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        with serving(arguments, STEPS.values()) as url:
            results = asyncio.run(measure(url, arguments))
    except BenchError as error:
        sys.exit(f"isolation: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    report(results)
    if any(one.num_cached for one in results["other tenant"]):
        sys.exit("isolation: tenant b got cached tokens of tenant a")
    if not all(one.num_cached for one in results["again"]):
        sys.exit("isolation: nothing is shown, for tenant a did not get its own tokens from the cache")


if __name__ == "__main__":
    main()
