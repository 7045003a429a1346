"""Work in a thread that nobody walks away from.

Owns one promise: whoever waits goes on only when the thread has ended, so that what it reads, such as a
model's vocabulary, may be freed afterwards. ``dispatcher`` and ``pool`` use it.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

ResultT = TypeVar("ResultT")


async def run_to_end(
    function: Callable[[], ResultT], *, limiter: anyio.CapacityLimiter | None = None
) -> ResultT:
    """The result of ``function``, run in a worker thread; a cancellation is raised once it has ended.

    anyio's ``run_sync`` keeps that promise for cancellations of anyio's own scopes only: ``Task.cancel``, by
    which a request ends whose client has left, gets through its shield while the thread goes on.
    """
    work = asyncio.ensure_future(run_sync(function, limiter=limiter))
    cancelled = None
    with anyio.CancelScope(shield=True):
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        work.exception()  # nobody wants it any more, and asyncio need not say so
        raise cancelled
    return work.result()
