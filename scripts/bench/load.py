"""Load on a running OpenAI-compatible server, and the speed it answers with.

Closed loop: each of ``--clients`` asks again as soon as it has its answer. Open loop (``--rate``): requests
arrive at random moments, so many a second, whether the server keeps up or not. Tokens are counted from
``usage``; what is measured is printed as one JSON line on stdout.

    scripts/bench/load --url http://127.0.0.1:8080 --clients 8 --requests 32 [--words 118] [--max-tokens 64]
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from typing import Any

import httpx

from scripts.bench.common import Result, ask, percentile, streamed, words


async def run(arguments: argparse.Namespace) -> list[Result]:
    """Put the load on; one result per request."""
    random_ = random.Random(arguments.seed)
    shared = words(random_, arguments.shared_words)
    bodies = [
        streamed(
            {"prompt": f"{shared} {words(random_, arguments.words)}".strip()},
            arguments.max_tokens,
            seed=index,
            temperature=arguments.temperature,
        )
        for index in range(arguments.requests)
    ]
    results: list[Result] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=arguments.url, timeout=arguments.timeout, limits=limits) as client:
        if arguments.rate:

            async def later(delay_s: float, body: dict[str, Any]) -> None:
                await asyncio.sleep(delay_s)
                results.append(await ask(client, body))

            delay_s = 0.0
            async with asyncio.TaskGroup() as group:
                for body in bodies:
                    group.create_task(later(delay_s, body))
                    delay_s += random_.expovariate(arguments.rate)
        else:
            queue = iter(bodies)

            async def one_client() -> None:
                for body in queue:
                    results.append(await ask(client, body))

            async with asyncio.TaskGroup() as group:
                for _ in range(arguments.clients):
                    group.create_task(one_client())
    return results


def summary(results: list[Result], elapsed_s: float) -> dict[str, Any]:
    """What was measured."""
    good = [result for result in results if result.error is None]
    first = [result.moments[0] for result in good if result.moments]
    gaps = [b - a for result in good for a, b in zip(result.moments, result.moments[1:], strict=False)]
    return {
        "requests": len(results),
        "failed": len(results) - len(good),
        "elapsed_s": round(elapsed_s, 3),
        "output_tokens_per_s": round(sum(result.num_new for result in good) / elapsed_s, 2),
        "prompt_tokens": sum(result.num_prompt for result in good),
        "cached_tokens": sum(result.num_cached for result in good),
        "output_tokens": sum(result.num_new for result in good),
        "ttft_ms": {"p50": percentile(first, 0.5), "p95": percentile(first, 0.95)},
        "itl_ms": {
            "mean": round(statistics.fmean(gaps) * 1e3, 1) if gaps else None,
            "p50": percentile(gaps, 0.5),
            "p95": percentile(gaps, 0.95),
            "max": percentile(gaps, 1.0),
        },
    }


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description="Put load on a server and print its speed.")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--words", type=int, default=118, help="words of each prompt that are its own")
    parser.add_argument("--shared-words", type=int, default=0, help="words that all prompts begin with")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    start = time.perf_counter()
    results = asyncio.run(run(arguments))
    print(json.dumps(summary(results, time.perf_counter() - start)))
    if errors := [result.error for result in results if result.error]:
        sys.exit(f"{len(errors)} of {len(results)} requests failed; the first: {errors[0]}")


if __name__ == "__main__":
    main()
