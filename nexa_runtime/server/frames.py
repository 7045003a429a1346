"""Server-sent events as bytes: one frame per event.

Owns how an event is put on a connection. It knows no endpoint; writers and routes call it. Source: the HTML
standard's ``text/event-stream``; OpenAI's chat for ``[DONE]``.
"""

from collections.abc import Mapping

import orjson

DONE = b"data: [DONE]\n\n"
"""The last frame of a stream that is complete, where the API has one."""


def frame(content: Mapping[str, object]) -> bytes:
    """One event of a stream."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


def typed_frame(content: Mapping[str, object]) -> bytes:
    """One event whose name is its ``type``, as the newer APIs have it."""
    return b"event: " + str(content["type"]).encode() + b"\n" + frame(content)
