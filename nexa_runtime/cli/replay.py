"""``nexa-runtime replay``: sends a request log again, and compares.

Owns the words and the document. ``replay_log`` reads the file, ``replay_run`` sends; ``main`` calls it.

Deliberate: what was then is what the server measured, what is now what a client sees, the network included.
"""

import asyncio
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from nexa_runtime import exit_codes
from nexa_runtime.cli import output as words
from nexa_runtime.cli.replay_answer import Answer
from nexa_runtime.cli.replay_log import RequestFile, read_requests
from nexa_runtime.cli.replay_run import Replay
from nexa_runtime.config import Settings
from nexa_runtime.errors import UsageError
from nexa_runtime.usage.log_line import LoggedRequest

_SHARES = {"p50": 0.5, "p95": 0.95}


@dataclass(frozen=True, slots=True)
class _Side:
    """All requests of one time. ``statuses``: how many had each; times by the names of ``_SHARES``."""

    statuses: dict[str, int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_ms: dict[str, float | None]
    total_ms: dict[str, float | None]

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Self:
        return cls(
            dict(sorted(Counter(one.status for one in answers).items())),
            sum(one.prompt_tokens for one in answers),
            sum(one.cached_tokens for one in answers),
            sum(one.completion_tokens for one in answers),
            _percentiles([one.ttft_ms for one in answers if one.ttft_ms is not None]),
            _percentiles([one.total_ms for one in answers]),
        )


def replay(
    settings: Settings,
    output: words.Output,
    path: Path,
    *,
    speed: float,
    limit: int | None,
    model: str | None,
) -> None:
    """Send the requests of a log to the server at ``NEXA_URL``.

    Raises ``NexaError``, and ``SystemExit`` when it was interrupted: there is a result all the same.
    """
    if not (math.isfinite(speed) and speed >= 0):
        raise UsageError("--speed must be a number from 0 on; 0: as fast as possible.")
    file = read_requests(path, limit)
    _announce(file, output, settings.client.url, speed)
    running = Replay(file.requests, settings, speed=speed, model=model)
    is_interrupted = False
    try:
        asyncio.run(running.run())
    except KeyboardInterrupt:
        is_interrupted = True
    for reason, number in running.skipped.most_common():
        output.say(f"Not sent, {number} requests: {reason}.")
    then, now = _sides(running.pairs)
    document = {
        "file": str(path),
        "url": settings.client.url,
        "speed": speed,
        "is_interrupted": is_interrupted,
        "requests": len(file.requests),
        "sent": running.num_sent,
        "answered": len(running.pairs),
        "latest_ms": round(running.max_late_s * 1e3, 1),
        "skipped": dict(running.skipped),
        "bad_lines": {"lines": file.num_bad, "first": [asdict(bad) for bad in file.bad_lines]},
        "then": asdict(then),
        "now": asdict(now),
    }
    output.result(document, _table(then, now))
    if is_interrupted:
        sys.exit(exit_codes.INTERRUPTED)


def _announce(file: RequestFile, output: words.Output, url: str, speed: float) -> None:
    for bad in file.bad_lines:
        output.say(f"Line {bad.number} is no request: {bad.reason}.")
    if file.num_bad > len(file.bad_lines):
        output.say(f"{file.num_bad - len(file.bad_lines)} more lines are no requests.")
    length_s = (file.requests[-1].created_at - file.requests[0].created_at).total_seconds()
    pace = f"over {length_s / speed:.0f} s" if speed else "as fast as possible"
    output.say(f"Sending {len(file.requests)} requests to {url}, {pace}.")


def _sides(pairs: Sequence[tuple[LoggedRequest, Answer]]) -> tuple[_Side, _Side]:
    """What was then and what is now; a first text counts where both have one."""
    then, now = [], []
    for request, answer in pairs:
        has_both = None not in (request.ttft_ms, answer.ttft_ms)
        before = Answer(
            str(request.status),
            request.prompt_tokens,
            request.cached_tokens,
            request.completion_tokens,
            request.ttft_ms if has_both else None,
            request.response_time_ms,
        )
        then.append(before)
        now.append(answer if has_both else replace(answer, ttft_ms=None))
    return _Side.of(then), _Side.of(now)


def _table(then: _Side, now: _Side) -> str:
    rows = [
        (f"status {status}", str(then.statuses.get(status, 0)), str(now.statuses.get(status, 0)))
        for status in sorted({*then.statuses, *now.statuses})
    ]
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        rows.append((name.replace("_", " "), str(getattr(then, name)), str(getattr(now, name))))
    for name, times in (("first text", "ttft_ms"), ("whole answer", "total_ms")):
        for share in _SHARES:
            before, after = (_shown(getattr(side, times)[share]) for side in (then, now))
            rows.append((f"{name}, {share}, ms", before, after))
    return words.table(("", "then", "now"), rows, right=(1, 2))


def _shown(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.0f}"


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {
        name: ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
        for name, share in _SHARES.items()
    }
