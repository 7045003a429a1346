"""Parts of an answer that chat and completions write alike.

Owns ``usage``, ``timings`` and ``finish_reason`` on the wire; the writers of both endpoints call it. Sources:
OpenAI's API, and llama-server for ``timings``.
"""

from collections.abc import Mapping

from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.serving.choices import Timings
from nexa_runtime.serving.generation import Usage


def usage_body(usage: Usage) -> dict[str, object]:
    """OpenAI's ``usage``."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings_body(usage: Usage, timings: Timings) -> dict[str, object]:
    """llama-server's ``timings``, with the wait for a slot. ``prompt_n``: tokens that were computed."""
    num_computed = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": num_computed,
        "prompt_ms": _ms(timings.prompt_s),
        "prompt_per_second": _rate(num_computed, timings.prompt_s),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": _ms(timings.predicted_s),
        "predicted_per_second": _rate(usage.completion_tokens, timings.predicted_s),
        "queue_ms": _ms(timings.queue_s),
    }


def closing(usage: Usage, timings: Timings | None) -> dict[str, object]:
    """What the body of a whole answer ends with."""
    body: dict[str, object] = {"usage": usage_body(usage)}
    if timings is not None:
        body["timings"] = timings_body(usage, timings)
    return body


def last_chunks(
    head: Mapping[str, object], usage: Usage, timings: Timings | None, *, wants_usage: bool
) -> list[Mapping[str, object]]:
    """The chunk without choices that ends a stream, where the client asked for what it has."""
    body = closing(usage, timings)
    if not wants_usage:
        del body["usage"]
    return [{**head, "choices": [], **body}] if body else []


def finish_name(reason: FinishReason | None) -> str | None:
    """OpenAI's ``finish_reason``."""
    return None if reason is None else reason.value


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0
