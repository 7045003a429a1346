"""What came back for a request that was sent again.

Owns how usage and the first text are found in an answer of any of the server's APIs. ``replay_run`` asks.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from nexa_runtime.cli.replay_body import Sending

CUT = "cut"
"""In the place of a status: a stream that ended without its end."""
NO_ANSWER = "none"


@dataclass(slots=True)
class Answer:
    """``status``: of HTTP, ``CUT`` or ``NO_ANSWER``. Times are those that a client sees."""

    status: str = NO_ANSWER
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: float | None = None
    total_ms: float = 0.0


async def ask(client: httpx.AsyncClient, sending: Sending, headers: dict[str, str]) -> Answer:
    """Send it, and read the answer to its end."""
    answer, start = Answer(), time.perf_counter()
    try:
        async with client.stream("POST", sending.path, json=sending.body, headers=headers) as response:
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                await _read_stream(response, answer, start)
            else:
                _take_usage(json.loads(await response.aread()), answer)
            if answer.status == NO_ANSWER:
                answer.status = str(response.status_code)
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
        answer.status = NO_ANSWER  # or one that is not ours
    answer.total_ms = _ms_since(start)
    return answer


async def _read_stream(response: httpx.Response, answer: Answer, start: float) -> None:
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        if answer.ttft_ms is None and _has_text(event):
            answer.ttft_ms = _ms_since(start)
        if "error" in event or event.get("type") == "response.failed":
            answer.status = CUT
        for place in (event, event.get("response"), event.get("message")):
            _take_usage(place, answer)


def _has_text(event: dict[str, Any]) -> bool:
    """Whether an event of a stream brings something of the answer."""
    if "choices" not in event:
        return bool(event.get("delta"))
    parts = [one.get("text") or one.get("delta", {}) for one in event["choices"]]
    return any(part if isinstance(part, str) else _is_said(part) for part in parts)


def _is_said(delta: dict[str, Any]) -> bool:
    return any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls"))


def _take_usage(body: object, answer: Answer) -> None:
    """The counts of a body or event, in the words of OpenAI's or Anthropic's APIs."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    read = usage.get("cache_read_input_tokens", 0)  # these are not among Anthropic's input_tokens
    answer.cached_tokens = read or details.get("cached_tokens", 0)
    answer.prompt_tokens = read + (usage.get("prompt_tokens") or usage.get("input_tokens") or 0)
    answer.completion_tokens = usage.get("completion_tokens") or usage.get("output_tokens") or 0


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1e3, 1)
