"""Asks a running server all evaluation prompts and counts the right answers.

Owns the HTTP side of the evaluation and its report. It never loads a model itself. Run
`scripts/demo_model/evaluate [--url URL] [--concurrency N]`; the exit status is 1 below 150 right
answers and 2 when the server cannot be asked.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import httpx

from demo_model.prompts import Prompt, all_prompts
from demo_model.report import print_report, summary

ENOUGH = 150
MAX_TOKENS = 200


class ServerError(Exception):
    """The server cannot be reached or does not answer as expected; the text is for the reader."""


async def choose_model(client: httpx.AsyncClient, wanted: str | None) -> str:
    """The model to ask: the wanted one, else one with "demo" in its name, else the first that is served."""
    if wanted:
        return wanted
    response = await client.get("/v1/models")
    response.raise_for_status()
    names = [str(model["id"]) for model in response.json()["data"]]
    if not names:
        raise ServerError("The server serves no model.")
    return next((name for name in names if "demo" in name), names[0])


async def ask(client: httpx.AsyncClient, model: str, prompt: Prompt, gate: asyncio.Semaphore) -> str:
    body = {"model": model, "messages": list(prompt.messages), "temperature": 0, "max_tokens": MAX_TOKENS}
    async with gate:
        response = await client.post("/v1/chat/completions", json=body)
        if response.status_code in (429, 503):
            await asyncio.sleep(float(response.headers.get("retry-after", "1")))
            response = await client.post("/v1/chat/completions", json=body)
    if response.is_error:
        return f"HTTP {response.status_code}: {response.text[:200]}"
    choice = response.json()["choices"][0]
    answer = str(choice["message"].get("content") or "")
    return answer if choice.get("finish_reason") == "stop" else f"did not stop: {answer}"


async def ask_all(arguments: argparse.Namespace, prompts: list[Prompt]) -> list[str]:
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    gate = asyncio.Semaphore(arguments.concurrency)
    async with httpx.AsyncClient(base_url=arguments.url, headers=headers, timeout=120.0) as client:
        model = await choose_model(client, arguments.model)
        return await asyncio.gather(*(ask(client, model, prompt, gate) for prompt in prompts))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate", description="How many prompts does the running server answer right?"
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:8080", help="address of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrency", type=int, default=8, help="requests at the same time (default: %(default)s)"
    )
    parser.add_argument("--model", help="name of the model (default: the served demo model)")
    parser.add_argument("--api-key", default="", help="key to send, where the server wants one")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    prompts = all_prompts()
    try:
        answers = asyncio.run(ask_all(arguments, prompts))
    except ServerError as error:
        print(error, file=sys.stderr)
        return 2
    except httpx.HTTPStatusError as error:
        print(
            f"The server at {arguments.url} answered {error.response.status_code} to {error.request.url}.",
            file=sys.stderr,
        )
        return 2
    except httpx.HTTPError:
        print(
            f"The server at {arguments.url} cannot be reached; start it with scripts/serve.", file=sys.stderr
        )
        return 2
    print_report(prompts, answers, verbose=True)
    return 0 if summary(prompts, answers).right >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
