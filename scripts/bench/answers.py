"""Whether an answer is one that a client can go by.

Owns what a refusal must have (status, shape, when to come back) and when a stream has ended as it should. It
sends nothing: ``mixed``, ``overload`` and ``faults`` bring what they got.
"""

import json
from collections.abc import Mapping

FULL = frozenset({429, 503})
"""Statuses of the tenant's limits and of the box: worth another try, later."""

_ENDINGS = {"data: [DONE]", "event: message_stop", "event: response.completed", "event: response.incomplete"}
_CUTS = ("event: error", "event: response.failed", 'data: {"error"')


def problem_of_refusal(status: int, headers: Mapping[str, str], body: bytes, path: str) -> str | None:
    """What is wrong with an answer that is no 200; None: nothing."""
    if not headers.get("x-request-id"):
        return f"{status} without x-request-id"
    try:
        content = json.loads(body)
    except ValueError:
        return f"{status} with a body that is no JSON: {body[:100]!r}"
    is_anthropic = path.startswith("/v1/messages")
    wanted = {"type", "message"} if is_anthropic else {"message", "type", "param", "code"}
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or not wanted <= set(error) or not error["message"]:
        return f"{status} in another shape: {body[:100]!r}"
    if is_anthropic and content.get("type") != "error":
        return f"{status} without Anthropic's type: {body[:100]!r}"
    if status in FULL and not _is_positive(headers.get("retry-after")):
        return f"{status} with Retry-After {headers.get('retry-after')!r}"
    return None


def problem_of_stream(lines: list[str]) -> str | None:
    """What is wrong with the end of a stream whose lines these are; None: nothing."""
    if any(line.startswith(_CUTS) for line in lines):
        return f"a stream was cut: {lines[-4:]}"
    return None if any(line in _ENDINGS for line in lines[-6:]) else f"a stream just ended: {lines[-4:]}"


def _is_positive(value: str | None) -> bool:
    return value is not None and value.isdigit() and int(value) >= 1
