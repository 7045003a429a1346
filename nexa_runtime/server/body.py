"""Request bodies: bytes with a cap and a deadline, then JSON that is really JSON.

Owns reading and parsing; ``protocol`` gives the values their types. uvicorn has neither cap nor deadline of
its own.
"""

import anyio
import orjson
from starlette.requests import ClientDisconnect, Request

from nexa_runtime.config import ServerSettings
from nexa_runtime.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientDisconnectedError,
    InvalidRequestError,
)

MAX_CONTAINERS = 50_000


async def read_json_object(request: Request, settings: ServerSettings) -> dict[str, object]:
    """The body as a JSON object. Raises ``RequestError`` for anything else, ``ClientDisconnectedError``."""
    data = await _read(request, settings)
    if data.count(b"{") + data.count(b"[") > MAX_CONTAINERS:
        # Parsing holds the event loop, and objects are what makes it slow. Braces inside texts are free.
        unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
        outside = b"".join(unescaped.split(b'"')[::2])
        if outside.count(b"{") + outside.count(b"[") > MAX_CONTAINERS:
            raise InvalidRequestError(f"The body has more than {MAX_CONTAINERS} objects and lists.")
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return body


async def _read(request: Request, settings: ServerSettings) -> bytes:
    max_bytes = settings.max_body_bytes
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise BodyTooLargeError(max_bytes)
    body = bytearray()
    try:
        with anyio.fail_after(settings.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise BodyTooLargeError(max_bytes)
    except TimeoutError:
        raise BodyTimeoutError(settings.body_timeout_s) from None
    except ClientDisconnect:
        raise ClientDisconnectedError from None
    return bytes(body)
