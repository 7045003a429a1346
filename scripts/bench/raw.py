"""One request on a connection of its own, with next to no work for the client.

Owns the bytes of a request and the reading of its answer up to the end of the connection. A client library
costs some milliseconds a request, and more the more connections are open: beside ten times too many it would
measure itself. ``overload`` and ``faults`` use it.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_PIECE = b'"content":"'
_EMPTY_PIECE = b'"content":""'


@dataclass
class RawAnswer:
    """``status``: 0 where there was no answer; ``error`` says why. ``first_text_s``: since it was sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    first_text_s: float | None = None
    error: str | None = None


def request_bytes(path: str, body: Mapping[str, Any], tenant: str | None = None) -> bytes:
    """A POST of JSON; the connection ends with its answer."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    if tenant:
        lines.append(f"X-Tenant-Id: {tenant}")
    return "\r\n".join([*lines, "", ""]).encode() + content


async def send(url: str, request: bytes, timeout_s: float = 120) -> RawAnswer:
    """Send ``request`` and read until the server closes the connection."""
    answer = RawAnswer()
    address = urlsplit(url)
    sent_at = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                _take_head(answer, head)
                parts = []
                while part := await reader.read(65536):
                    parts.append(part)
                    if answer.first_text_s is None and part.count(_PIECE) > part.count(_EMPTY_PIECE):
                        answer.first_text_s = time.perf_counter() - sent_at
                answer.body = b"".join(parts)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


def _take_head(answer: RawAnswer, head: bytes) -> None:
    first, *lines = head.decode("latin-1").split("\r\n")
    answer.status = int(first.split()[1])
    for line in lines:
        name, _, value = line.partition(":")
        answer.headers[name.lower()] = value.strip()
